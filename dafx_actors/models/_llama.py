"""The process in which the local model runs. `_server.py` starts it as a script, by this file's path.

It reads its settings from standard input, as one line of JSON; answers there with a line of its own, `{"url": ...}`
or `{"error": ...}`; and ends when standard input does, so that it cannot outlive who started it, however that ended.

Why a process of its own, where the server could as well run inside ours: it holds the GIL while it loads, half a
second and more, in which no event loop would turn; a process that ends without having stopped it hangs for ever; and
what crashes in native code ends this process and not a worker with its turns.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve until standard input ends."""
    # Ctrl-C at a terminal reaches every process of its group. Ours has to finish the answers in flight first, and
    # ends this one by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Standard output is for the answer alone, whatever native code prints there.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # A script's directory comes first on the path; this one has an `openai.py`.
    here = Path(__file__).parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry) != here]
    try:
        server = _serve(json.loads(sys.stdin.readline()))
        answer = {"url": server.listening_address}
    except Exception as error:  # noqa: BLE001  # told to the other side, which raises it
        server, answer = None, {"error": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    if server is not None:
        sys.stdin.read()
    # Not `sys.exit`: the server's destructor waits for requests in flight, and may never end at interpreter exit.
    os._exit(0)


def _serve(settings: dict[str, Any]) -> Any:
    """Start the server on a free port of 127.0.0.1; it serves in threads of its own."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # it has no types

    params = xllamacpp.CommonParams()
    params.model.path = settings["weights"]
    params.model_alias = {settings["name"]}
    params.api_keys = [settings["api_key"]]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_gpu_layers = 0
    # Asleep, not spinning, while there is nothing to compute.
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = settings["threads"]
        cpu.poll = 0
    # The context is divided among the slots, each of which makes one answer at a time.
    params.n_ctx = settings["context"] * settings["slots"]
    params.n_parallel = settings["slots"]
    # The same question gives the same answer only if no earlier one left something behind. The cache would also be
    # allowed 8 GiB of memory.
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.fit_params = False
    params.warmup = False
    params.verbosity = -1
    params.ui = False
    params.endpoint_slots = False
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
