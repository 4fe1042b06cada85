"""A crash run: load a broker until it has put ten objects and wrapped its WAL's ring, kill it, and hold it to its word.

One place for data (tests/crash/places.py), one broker and one port live through all runs; each run has a topic of its own. While the broker is
down its clients go on trying. When it is back everything they sent must get through, and then every acknowledged
record must be there, once, in order, at its offset. `tidelog verify` must find the bucket sound right after each kill. After the last run every topic of every run is read again.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException

from tests.checker.history import History, check
from tests.crash.load import Load, create_topic, delete_topic, read_topic
from tests.crash.places import Place
from tests.crash.process import BrokerProcess, killed_at_last
from wal import crashpoint

__all__ = ["CrashRun", "crash_runs"]

OBJECTS_PER_RUN = 10
PARTITIONS = 3
AT_RANDOM = "at random"
_REACHED_WITHIN_S = 180.0
_STEP_BYTES = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashRun:
    """What one run was like."""

    number: int
    kind: str
    sent_bytes: int
    acknowledged_records: int
    seen_records: int
    objects_before_kill: int
    ring_laps_before_kill: float
    killed_while_starting: bool
    recovery_s: float

    def __str__(self) -> str:
        again = ", and again while starting" if self.killed_while_starting else ""
        return (
            f"run {self.number}: killed {self.kind}{again} after {self.objects_before_kill} objects and "
            f"{self.ring_laps_before_kill:.1f} laps; {self.acknowledged_records} records acknowledged, all there; "
            f"serving again after {self.recovery_s:.2f} s"
        )


def crash_runs(directory: Path, place: Place, *, runs: int, seed: int) -> Iterator[CrashRun]:
    """Crash a broker so many times, at each named point and at random in turn.

    Raises:
        AssertionError: a promise was broken; the message lists how.
    """
    kinds = [*crashpoint.POINTS, AT_RANDOM]
    broker = BrokerProcess(
        directory,
        {
            "object.store.uri": place.object_store_uri,
            "wal.uri": place.wal_uri,
            "memory.bytes": 128 << 20,
            "upload.size.bytes": 1 << 20,
            "upload.interval.ms": 500,
            "metadata.log.max.record.bytes.between.snapshots": 2 << 10,
        },
        environment=place.environment,
    )
    histories: dict[str, History] = {}
    with killed_at_last(broker):
        _start(broker, kinds[0])
        broker.wait_ready()
        for number in range(runs):
            rng = random.Random(f"{seed}/{number}")
            kind = kinds[number % len(kinds)]
            topic = f"run-{number}"
            history = histories[topic] = History()
            create_topic(broker.bootstrap_servers, topic, PARTITIONS)
            load = Load(broker.bootstrap_servers, topic=topic, partitions=PARTITIONS, history=history, rng=rng)
            objects_at_first = place.count_objects()
            objects_before_kill = 0
            deadline = time.monotonic() + _REACHED_WITHIN_S
            while load.sent_bytes < 2 * place.wal_capacity_bytes or objects_before_kill < OBJECTS_PER_RUN:
                assert time.monotonic() < deadline, f"too few objects: {objects_before_kill}\n{broker.log_tail()}"
                load.pump(_STEP_BYTES)
                objects_before_kill = place.count_objects() - objects_at_first
            laps = load.sent_bytes / place.wal_capacity_bytes
            _crash(broker, kind, load, rng)
            _verify(broker, place)
            began = time.monotonic()
            killed_while_starting = rng.random() < 0.3
            if killed_while_starting:
                _start(broker, AT_RANDOM)
                time.sleep(rng.uniform(0.0, 1.0))
                broker.kill()
                began = time.monotonic()
            _start(broker, kinds[(number + 1) % len(kinds)])
            load.pump(_STEP_BYTES)
            broker.wait_ready()
            recovery_s = time.monotonic() - began
            load.pump(_STEP_BYTES)
            load.finish()
            check(history, read_topic(broker.bootstrap_servers, topic, PARTITIONS))
            assert history.acknowledged_count == history.sent_count > 0
            yield CrashRun(
                number=number,
                kind=kind,
                sent_bytes=load.sent_bytes,
                acknowledged_records=history.acknowledged_count,
                seen_records=history.seen_count,
                objects_before_kill=objects_before_kill,
                ring_laps_before_kill=laps,
                killed_while_starting=killed_while_starting,
                recovery_s=recovery_s,
            )
        broker.stop()
        broker.start()
        broker.wait_ready()
        for topic, history in histories.items():
            check(history, read_topic(broker.bootstrap_servers, topic, PARTITIONS))
        broker.stop()
    _verify(broker, place)


def _start(broker: BrokerProcess, kind: str) -> None:
    broker.start(crash_point=None if kind == AT_RANDOM else kind)


def _crash(broker: BrokerProcess, kind: str, load: Load, rng: random.Random) -> None:
    if kind == AT_RANDOM:
        load.pump(rng.randrange(2 << 20))
        broker.kill()
        return
    broker.arm()
    deadline = time.monotonic() + _REACHED_WITHIN_S
    while not broker.has_ended():
        assert time.monotonic() < deadline, f"it did not reach {kind}:\n{broker.log_tail()}"
        load.pump(_STEP_BYTES // 8)
        if kind == "metadata.snapshot":
            _write_metadata(broker)
    broker.wait_killed(1.0)


def _write_metadata(broker: BrokerProcess) -> None:
    """Fill the metadata log: a topic comes and goes."""
    with contextlib.suppress(KafkaException):  # the broker dies meanwhile, as it should
        create_topic(broker.bootstrap_servers, "fleeting", 100, timeout_s=2.0)
        delete_topic(broker.bootstrap_servers, "fleeting", timeout_s=2.0)


def _verify(broker: BrokerProcess, place: Place) -> None:
    """Whatever a crash cut short, `tidelog verify` finds nothing wrong."""
    result = subprocess.run(
        [sys.executable, "-m", "broker", "verify", "--bucket", place.object_store_uri],
        capture_output=True, text=True, check=False, timeout=_REACHED_WITHIN_S, env=broker.environment,
    )  # fmt: skip
    assert result.returncode == 0, f"verification ended with {result.returncode}:\n{result.stdout}{result.stderr}"
