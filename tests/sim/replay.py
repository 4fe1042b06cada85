"""Whether a seed gives one history, whatever the order of sets."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable

from tests.sim.run import Outcome

__all__ = ["digest_of", "digests_by_hash_seed"]

_HASH_SEEDS = (1, 2)


def digest_of(outcome: Outcome) -> str:
    """Differs when anything differed."""
    return hashlib.sha256(outcome.trace.encode()).hexdigest()


def digests_by_hash_seed(simulate: Callable[[int], Outcome], seed: int) -> set[str]:
    """What a seed gives in processes that hash strings differently; `simulate` is a function of a module."""
    script = (
        f"from {__name__} import digest_of; from {simulate.__module__} import {simulate.__name__} as simulate; "
        f"print(digest_of(simulate({seed})))"
    )
    return {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            env={"PYTHONHASHSEED": str(hash_seed), "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in _HASH_SEEDS
    }
