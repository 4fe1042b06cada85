"""How often what sizes and durations were seen: cheap enough to note every write and every request.

Always true:
- It is two plain numbers and a list, changed by one event loop; whoever reads them, reads. No lock, no clock, no library.
- Bounds are inclusive and ascend; the last count is of what is above all of them. So each observation is counted once.

It lies in the lowest package, since all above it note something.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["COUNT_BOUNDS", "DURATION_BOUNDS_S", "SIZE_BOUNDS_BYTES", "Histogram"]

DURATION_BOUNDS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""From a write to a good local disk to a request that a client gives up."""

SIZE_BOUNDS_BYTES = tuple(4.0**power for power in range(5, 14))
"""1 KiB to 64 MiB."""

COUNT_BOUNDS = tuple(4.0**power for power in range(8))
"""1 to 16,384."""


class Histogram:
    """Observations by size class."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = DURATION_BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        """Sum of all observations."""

    def observe(self, value: float) -> None:
        """Count one observation. The hottest paths spell these two lines out."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)
