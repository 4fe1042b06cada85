"""What one seed means for several nodes: all that it means for one (`scenario.draw`), but for what would get in the way, and what happens among them."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, replace

from tests.sim.scenario import Scenario, draw

__all__ = ["ClusterScenario", "WalsAre", "draw_cluster"]


class WalsAre(enum.Enum):
    """Where the nodes have their WALs, and so who can recover them."""

    ON_ONE_HOST = "on one host"
    """Processes of one computer: each can fence and read what the others write."""
    ON_VOLUMES = "on volumes"
    """Each node has a computer; its volume may be attached to another one's."""
    IN_BUCKET = "in the bucket"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterScenario:
    """One simulation's parameters."""

    base: Scenario
    """Sizes, load, faults of disks, network and bucket, and how processes end."""
    nodes: int
    wals: WalsAre
    rough_start: bool
    """Things go wrong from the start; else when there are partitions."""
    all_at_once: bool
    """Several nodes may be away, or not themselves, at the same time; else the others are there to take over."""
    session_timeout_ms: int
    lease_ms: int
    stay_away: float
    """Probability that a node whose process ended stays away until others have surely taken over."""
    away_for_good: bool
    """A node that is away when faults end never comes back."""
    cut: float
    """Probability per second that computers are cut off from each other for a while."""
    cut_s: float
    store_cut: float
    """Probability per second that one node cannot reach the bucket for a while."""
    move: float
    """Probability per second that an operator has partitions moved, drains a node, or takes that back."""
    request_timeout_s: float
    """Of clients: a short one has them try again elsewhere while the first attempt may still take effect."""
    settles: bool
    """At the end it is waited until nothing is left in the bucket that nothing needs. That takes half of a simulation's time."""

    @property
    def death_s(self) -> float:
        """After so long a silent node is dead, and its WAL recovered, if nothing else is in the way."""
        return (self.session_timeout_ms + self.lease_ms) / 1_000 + 3.0


def draw_cluster(seed: int) -> ClusterScenario:
    """The scenario of a seed."""
    rng = random.Random(f"{seed} cluster")
    base = draw(seed)
    duration_s = rng.uniform(15.0, 35.0)
    max_batches = rng.choice((40, 80))
    theme = rng.choice(("crashes", "crashes", "standstill", "cuts", "moves", "all"))
    """What most goes wrong; a third of all runs have little else but crashes."""
    wals = rng.choice(list(WalsAre))
    session_timeout_ms, lease_ms = rng.choice(((1_000, 1_500), (2_000, 3_000)))
    if random.Random(f"{seed} lease").random() < 0.3:
        session_timeout_ms, lease_ms = 1_000, 4_000  # so that it matters that the end of the lease is waited for
    base = replace(
        base,
        duration_s=duration_s,
        partitions=rng.randint(2, 5),
        idempotent_producers=rng.choice((1, 1, 2)),
        plain_producers=rng.choice((0, 0, 1)),
        max_batches=max_batches,
        pause_s=2 * duration_s / max_batches,
        block_sized=False,
        crash_interval_s=rng.choice((1.0, 3.0, 6.0)) * (1 if theme in ("crashes", "all") else 10),
        orderly_stop=rng.choice((0.0, 0.0, 0.3)),
        # Nodes of one computer would lose power together.
        power_loss=0.0 if wals is WalsAre.ON_ONE_HOST else base.power_loss,
        outage=rng.choice((0.0, 0.03)) if theme in ("cuts", "all") else 0.0,
        suspend={"standstill": 0.3, "all": 0.1}.get(theme, 0.0),
        takeover=0.0,
        churn=False,
        trim=False,
        retention=False,
        rival=False,
        clock_jumps=False,
        clock_errors=False,
        little_memory=False,
        wal_in_bucket=wals is WalsAre.IN_BUCKET,
        upload_interval_ms=rng.choice((300, 2_000, 10_000)),
        snapshot_interval_entries=rng.choice((20, 200)),
        entry_min_age_ms=rng.choice((0, 5_000, 60_000)),
        store=replace(base.store, flipped=0.0),
    )
    return ClusterScenario(
        base=base,
        nodes=3,
        wals=wals,
        rough_start=rng.random() < 0.2,
        all_at_once=rng.random() < 0.25,
        session_timeout_ms=session_timeout_ms,
        lease_ms=lease_ms,
        stay_away=rng.choice((0.5, 0.8, 1.0)),
        away_for_good=rng.random() < 0.5,
        cut={"cuts": 0.4, "all": 0.1}.get(theme, 0.0),
        cut_s=rng.choice((1.0, 2 * (session_timeout_ms + lease_ms) / 1_000)),
        store_cut=rng.choice((0.0, 0.05)) if theme in ("cuts", "all") else 0.0,
        move={"moves": 0.7, "all": 0.2}.get(theme, 0.05),
        request_timeout_s=rng.choice((1.0, 2.0, 10.0)),
        settles=rng.random() < 0.25,
    )
