"""Which faults come when: drawn from a seed, so that a run can be had again (what the processes make of it differs).

Two tracks run beside each other: one has brokers killed, paused and restarted, the other has the network fail. So a
broker may be killed while another one is cut off from the store. Within a track one fault ends before the next begins.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["NETWORK_FAULTS", "PROCESS_FAULTS", "Fault", "Step", "steps"]


class Fault(enum.StrEnum):
    """What may happen to a node."""

    KILL = "kill -9, and a start after a while"
    LOSE = "kill -9, and a start when others serve its partitions"
    PAUSE = "SIGSTOP, and SIGCONT after a while"
    RESTART = "SIGTERM, and a start"
    ROLL = "a restart of every node, one after the other"
    SLOW_CLIENTS = "all between its clients and it is slow"
    RESET_CLIENTS = "all connections of its clients are reset"
    CUT_CLIENTS = "nothing passes between its clients and it"
    CUT_CONTROLLER = "nothing passes between its controller and others"
    RESET_CONTROLLER = "all connections to its controller are reset"
    SLOW_STORE = "all between it and the store is slow"
    RESET_STORE = "all its connections to the store are reset"
    CUT_STORE = "nothing passes between it and the store"


PROCESS_FAULTS = (Fault.KILL, Fault.LOSE, Fault.PAUSE, Fault.RESTART, Fault.ROLL)
NETWORK_FAULTS = (
    Fault.SLOW_CLIENTS,
    Fault.RESET_CLIENTS,
    Fault.CUT_CLIENTS,
    Fault.CUT_CONTROLLER,
    Fault.RESET_CONTROLLER,
    Fault.SLOW_STORE,
    Fault.RESET_STORE,
    Fault.CUT_STORE,
)

_LONGEST_S = {
    Fault.KILL: 4.0,
    Fault.LOSE: 1.0,
    Fault.PAUSE: 6.0,
    Fault.RESTART: 1.0,
    Fault.ROLL: 0.5,
    Fault.RESET_CLIENTS: 0.1,
    Fault.RESET_CONTROLLER: 0.1,
    Fault.RESET_STORE: 0.1,
}
_LONGEST_OF_OTHERS_S = 5.0
_LONGEST_QUIET_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One fault of one node."""

    fault: Fault
    node_id: int
    lasts_s: float
    delay_ms: int
    """Of a link that is slow."""
    quiet_s: float
    """Before the next one on its track."""

    def __str__(self) -> str:
        return f"node {self.node_id}, {self.lasts_s:.1f} s: {self.fault.value}"


def steps(seed: int, faults: Sequence[Fault], node_ids: Sequence[int]) -> Iterator[Step]:
    """Without end. Each fault comes once before any comes again."""
    rng = random.Random(f"{seed} {faults[0].name}")
    while True:
        for fault in rng.sample(faults, len(faults)):
            longest_s = _LONGEST_S.get(fault, _LONGEST_OF_OTHERS_S)
            yield Step(
                fault=fault,
                node_id=rng.choice(node_ids),
                lasts_s=rng.uniform(longest_s / 10, longest_s),
                delay_ms=rng.randrange(5, 200),
                quiet_s=rng.uniform(0.2, _LONGEST_QUIET_S),
            )
