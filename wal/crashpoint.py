"""Named points at which a test may stop the process, to show that nothing acknowledged is lost there.

Always true: nothing is armed unless a test did it, and then `reach` costs one comparison.

The points, each between two steps of which a crash may see only the first:
- `wal.durable`: frames are durable in the WAL, and not acknowledged.
- `upload.put`: objects are in the store, and not committed.
- `upload.committed`: objects are committed, and the WAL is not trimmed.
- `metadata.snapshot`: a snapshot of the metadata is stored, and the log's floor not raised to it.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["POINTS", "arm", "reach"]

POINTS = ("wal.durable", "upload.put", "upload.committed", "metadata.snapshot")

_hook: Callable[[str], None] | None = None


def arm(hook: Callable[[str], None] | None) -> None:
    """Call `hook` with the name of each point reached; None disarms."""
    global _hook
    _hook = hook


def reach(point: str) -> None:
    """Say that a point was reached."""
    if _hook is not None:
        _hook(point)
