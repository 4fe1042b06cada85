"""Starts a broker whose event loop is blocked for a while by SIGUSR1, as by work that takes long. Use: `python -m tests.cluster.blockable serve -c broker.toml`"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

from broker.__main__ import main

BLOCKED_S = 12.0
"""More than it takes until a broker that is not heard from is taken for dead, by default."""


def block(number: int, frame: FrameType | None) -> None:
    """Runs in the main thread, which is that of the event loop."""
    time.sleep(BLOCKED_S)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, block)
    sys.argv = ["tidelog", *sys.argv[1:]]
    sys.exit(main())
