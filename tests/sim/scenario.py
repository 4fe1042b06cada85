"""What one seed means: sizes, load, and what goes wrong, all drawn before anything runs."""

from __future__ import annotations

import random
from dataclasses import dataclass

from s3stream.memory import Faults
from tests.sim.disk import DiskFaults
from tests.sim.network import NetworkFaults
from wal.frame import BLOCK_SIZE_BYTES

__all__ = ["HEALTHY_STORE", "Scenario", "draw"]

HEALTHY_STORE = Faults(latency_ms=5.0)
_ALIGNMENT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One simulation's parameters."""

    seed: int
    duration_s: float
    """How long things go wrong; then everything heals, and comes to its end."""
    partitions: int
    idempotent_producers: int
    plain_producers: int
    pause_s: float
    """Mean pause of a producer now and then."""
    max_batches: int
    """Of one producer, so that a seed costs seconds at most."""
    max_value_bytes: int
    block_sized: bool
    """Each batch fills whole blocks of the WAL: so frames that were given up stand where later ones might end."""
    churn: bool
    """Topics are created, deleted, and created again under the same name."""
    trim: bool
    """The log start offset of a topic goes up while it is read."""
    crash_interval_s: float
    """Mean time to the next crash."""
    restart_delay_s: float
    orderly_stop: float
    """Probability that a stop is an orderly one."""
    kill_within_write: float
    """Probability that a crash comes while a write to the disk is under way."""
    power_loss: float
    """Probability that a crash is a power loss."""
    outage: float
    """Probability per second that the bucket is unreachable for a while."""
    outage_s: float
    suspend: float
    """Probability per second that the broker stands still for a while."""
    takeover: float
    """Probability per second that another computer is given the node id, while the process on the first one lives."""
    clock_jumps: bool
    clock_drift: float
    clock_errors: bool
    """Clocks of machines are wrong by up to half a day, and are set to another wrong time now and then."""
    retention: bool
    """A topic keeps records for an hour, and gets older ones and newer ones."""
    rival: bool
    """Another would-be controller takes the office now and then, and stands still at any await."""
    little_memory: bool
    """What arrives and what leaves must do with little memory."""
    wal_in_bucket: bool
    """The WAL is in the bucket as well, so that the disk does not matter."""
    wal_batch_interval_ms: int
    wal_capacity_bytes: int
    arena_bytes: int
    upload_size_bytes: int
    upload_interval_ms: int
    stream_object_min_bytes: int
    snapshot_interval_entries: int
    entry_min_age_ms: int
    """Entries of the metadata log are kept for so long, so that a lease takes one request."""
    restore_window_ms: int
    """How long the history of the metadata is kept; the rival keeps it no longer than it must."""
    store: Faults
    disk: DiskFaults
    network: NetworkFaults

    @property
    def largest_request_bytes(self) -> int:
        """No client sends more at once: eight records to each partition."""
        return 8 * self.partitions * (max(self.max_value_bytes, BLOCK_SIZE_BYTES) + 100)


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(seed)
    calm = rng.random() < 0.2
    """A fifth of all runs have no faults but crashes, so that what they cover is deep."""
    wal_capacity_bytes = rng.choice((256, 512, 1024, 4096)) << 10
    block_sized = rng.random() < 0.15
    short = not block_sized and random.Random(f"{seed} length").random() < 0.85
    """Most runs are short, so that many can be had; the others go deep."""
    arena_bytes = rng.choice((1, 2, 4)) * (wal_capacity_bytes // 2)
    return Scenario(
        seed=seed,
        duration_s=rng.uniform(5.0, 25.0) / (3 if short else 1),
        partitions=1 if block_sized else rng.randint(1, 4),
        idempotent_producers=3 if block_sized else rng.randint(1, 3),
        plain_producers=rng.randint(0, 1),
        pause_s=0.005 if block_sized else rng.choice((0.005, 0.02, 0.1)),
        max_batches=rng.choice((100, 300)) // (4 if short else 1),
        max_value_bytes=min(rng.choice((500, 4_000, 20_000)), arena_bytes // 8 // 10, wal_capacity_bytes // 2 // 10),
        block_sized=block_sized,
        churn=rng.random() < 0.4,
        trim=rng.random() < 0.4,
        crash_interval_s=0.5 if block_sized else rng.choice((1.0, 3.0, 8.0)),
        restart_delay_s=rng.choice((0.0, 0.05, 1.0)),
        orderly_stop=0.0 if block_sized else rng.choice((0.0, 0.2, 0.5)),
        kill_within_write=0.8 if block_sized else 0.3,
        power_loss=rng.choice((0.0, 0.5)),
        outage=0.0 if calm else rng.choice((0.0, 0.05, 0.2)),
        outage_s=rng.uniform(0.5, 6.0),
        suspend=0.0 if calm or block_sized else random.Random(f"{seed} suspend").choice((0.0, 0.0, 0.1, 0.3)),
        takeover=0.0 if block_sized else random.Random(f"{seed} takeover").choice((0.0, 0.0, 0.1, 0.3)),
        clock_jumps=rng.random() < 0.2,
        clock_drift=rng.uniform(-0.0002, 0.0002),
        clock_errors=random.Random(f"{seed} clocks").random() < 0.3,
        retention=not block_sized and random.Random(f"{seed} retention").random() < 0.6,
        rival=not block_sized and random.Random(f"{seed} rival").random() < 0.25,
        little_memory=random.Random(f"{seed} memory").random() < 0.3,
        # Drawn apart, so that all else of a seed is the same whatever kind of WAL it has.
        wal_in_bucket=not block_sized and random.Random(f"{seed} kind of WAL").random() < 0.25,
        wal_batch_interval_ms=random.Random(f"{seed} interval").choice((0, 5, 50)),
        wal_capacity_bytes=wal_capacity_bytes,
        arena_bytes=arena_bytes // _ALIGNMENT_BYTES * _ALIGNMENT_BYTES,
        upload_size_bytes=rng.choice((32, 64, 256)) << 10,
        upload_interval_ms=rng.choice((50, 300, 2_000)),
        stream_object_min_bytes=rng.choice((8, 64, 1024)) << 10,
        snapshot_interval_entries=rng.choice((5, 20, 200)),
        entry_min_age_ms=0,
        restore_window_ms=random.Random(f"{seed} restore window").choice((0, 0, 5_000)),
        store=HEALTHY_STORE
        if calm
        else Faults(
            latency_ms=rng.choice((1.0, 10.0, 50.0)),
            slow_probability=0.01,
            slow_latency_ms=1_000.0,
            delay_ms=random.Random(f"{seed} delay").choice((3_000.0, 3_000.0, 40_000.0)),
            refused=rng.choice((0.0, 0.02)),
            lost_reply=rng.choice((0.0, 0.02)),
            delayed=rng.choice((0.0, 0.02)),
            echo=random.Random(f"{seed} echo").choice((0.0, 0.02, 0.1)),
            repeated=rng.choice((0.0, 0.05)),
            conflict=rng.choice((0.0, 0.02)),
            flipped=rng.choice((0.0, 0.0, 0.01)),
        ),
        disk=DiskFaults(
            mean_latency_s=0.005 if block_sized else rng.choice((0.0002, 0.002)),
            stall=0.0 if calm else 0.001,
            fail=0.0 if calm else rng.choice((0.0, 0.0, 0.0005)),
        ),
        network=NetworkFaults(stall=0.0, reset=0.0)
        if calm
        else NetworkFaults(stall=rng.choice((0.0, 0.005)), reset=rng.choice((0.0, 0.001, 0.005))),
    )
