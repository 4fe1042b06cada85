"""`python -m bench.counting_broker serve -c FILE`: a broker that says how often it asked its object store for what.

SIGUSR1 makes it print the requests so far, one JSON object on a line; SIGTERM stops it in order. It is an embedded `Node`, as
`tidelog serve` is.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from pathlib import Path

from bench.broker import run_program
from broker.__main__ import GC_THRESHOLDS
from broker.config import settings_from
from broker.node import Node

__all__: list[str] = []


async def _serve(config: Path) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    async with Node(settings_from(file=config)) as node:

        def tell() -> None:
            print(json.dumps(node.running.store.requests), flush=True)

        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        loop.add_signal_handler(signal.SIGUSR1, tell)
        await stop.wait()


if __name__ == "__main__":
    sys.exit(run_program("bench.counting_broker", _serve))
