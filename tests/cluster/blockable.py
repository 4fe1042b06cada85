"""Starts a broker whose event loop is blocked for a while by SIGUSR1, as by work that takes long, and slow for a while by SIGUSR2, as by much
work. Use: `python -m tests.cluster.blockable serve -c broker.toml`"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from types import FrameType

from broker.__main__ import main

BLOCKED_S = 12.0
"""More than it takes until a broker that is not heard from is taken for dead, by default."""

SLOW_S = 12.0
TURN_S = 0.4
"""What each turn of the loop then takes, without letting go of the interpreter."""


def block(number: int, frame: FrameType | None) -> None:
    """Runs in the main thread, which is that of the event loop."""
    time.sleep(BLOCKED_S)


def slow_down(number: int, frame: FrameType | None) -> None:
    """Likewise."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + SLOW_S

    def turn() -> None:
        until_s = time.monotonic() + TURN_S
        while time.monotonic() < until_s:
            pass
        if loop.time() < end_s:
            loop.call_soon(turn)

    loop.call_soon_threadsafe(turn)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, block)
    signal.signal(signal.SIGUSR2, slow_down)
    sys.argv = ["tidelog", *sys.argv[1:]]
    sys.exit(main())
