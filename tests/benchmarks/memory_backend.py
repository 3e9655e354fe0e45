"""durabletask's in-memory backend as a process, with threads enough for everybody who waits."""

from __future__ import annotations

import os
import sys
from typing import Any, cast

from durabletask.testing import in_memory_backend

from tests.benchmarks import control

if __name__ == "__main__":
    control.quiet()
    futures = cast("Any", in_memory_backend).futures
    plain = futures.ThreadPoolExecutor
    futures.ThreadPoolExecutor = lambda max_workers: plain(max_workers=4_000)
    backend = in_memory_backend.InMemoryOrchestrationBackend(port=int(sys.argv[1]), max_history_size=1_000_000)
    backend.start()
    print(f"http://127.0.0.1:{sys.argv[1]}", flush=True)
    sys.stdin.read()
    os._exit(0)  # What it holds is nobody's concern.
