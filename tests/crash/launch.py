"""Starts a broker that kills itself at a named point, once the test has created a file that says so.

Use: `python -m tests.crash.launch POINT FILE serve -c broker.toml`
"""

from __future__ import annotations

import os
import signal
import sys

from broker.__main__ import main
from wal import crashpoint


def kill_at(point: str, arming_file: str) -> None:
    """SIGKILL this process when it reaches `point` and `arming_file` exists: nothing is flushed, nothing cleaned up."""
    assert point in crashpoint.POINTS, f"there is no crash point {point}; there are {crashpoint.POINTS}"

    def hook(reached: str) -> None:
        if reached == point and os.path.exists(arming_file):
            os.kill(os.getpid(), signal.SIGKILL)

    crashpoint.arm(hook)


if __name__ == "__main__":
    _, _point, _arming_file, *_arguments = sys.argv
    kill_at(_point, _arming_file)
    sys.argv = ["tidelog", *_arguments]
    sys.exit(main())
