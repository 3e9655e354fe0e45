"""The worker and the client of this sample in one program.

python sample.py [EMAIL]            both
python sample.py worker             only the worker
python sample.py client [EMAIL]     only the client
"""

import logging
import sys

import anyio
import client
import worker

from dafx_actors.scheduler import scheduler_if_needed

logger = logging.getLogger("__main__")


async def main(*arguments: str) -> None:
    match arguments:
        case ["worker"]:
            await worker.main()
        case ["client", *email]:
            await client.main(*email)
        case email:
            async with scheduler_if_needed(say=logger.info), worker.create_worker(stop_timeout=1):
                await client.main(*email)


if __name__ == "__main__":
    logging.basicConfig()
    logger.setLevel(logging.INFO)
    try:
        anyio.run(main, *sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl+C
