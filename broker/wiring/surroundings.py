"""What a broker takes from whoever runs it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from controller.lease import boottime_s
from s3stream.objectstore import ObjectStore

__all__ = ["Surroundings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a broker takes from whoever runs it, so that tests can give something else."""

    now_ms: Callable[[], int]
    rng: random.Random
    on_failed: Callable[[BaseException], None]
    """Told once when the broker can acknowledge nothing more; stop it then."""
    wrap_store: Callable[[ObjectStore], ObjectStore] | None = None
    """Puts something between the broker and its object store (faults, counters). Compaction then goes through it as well, and
    stays in this process."""
    hands_over: Callable[[], bool] = lambda: True
    """Asked when it stops: whether others are there to take its partitions, or stop at the same time."""
    clock: Callable[[], float] = time.perf_counter
    """Seconds, for figures only."""
    boottime: Callable[[], float] = boottime_s
    """Seconds that go on while the machine sleeps, for leases."""
    has_lookout: bool = False
    """A thread looks at the bucket in place of an event loop that is late, with a client of the store of its own."""
    host: str = ""
    """Identity of the machine; empty: none that others could be on."""

    def nonce(self) -> str:
        """Not used before."""
        return f"{self.rng.getrandbits(64):016x}"
