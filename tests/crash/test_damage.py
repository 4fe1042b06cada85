"""Damage behind the back of a broker that was killed, seen by a real client (I1, I7): it never skips anything silently, and what is
repaired is all there again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from tests.crash.load import create_topic
from tests.crash.process import BrokerProcess, killed_at_last
from wal.directory import open_read_only
from wal.disk import ThreadDisk
from wal.frame import FRAME_HEADER_SIZE_BYTES
from wal.header import RING_START_BYTES
from wal.slot import SLOT_HEADER_SIZE_BYTES
from wal.survey import SurveyedFrame, WalSurvey, frames_of

pytestmark = [pytest.mark.crash, pytest.mark.slow]

ROUNDS = 30
PER_ROUND = 10
COUNT = ROUNDS * PER_ROUND
QUIET_S = 3.0
"""A consumer that gets nothing for so long while the broker answers stays where it is."""


def value(number: int) -> bytes:
    return b"value %d" % number


def produce(
    broker: BrokerProcess, topic: str, first: int, count: int, timeout_ms: int = 30_000
) -> list[KafkaError | None]:
    """Acknowledged records, one write for each round or so; the outcome of each."""
    outcomes: list[KafkaError | None] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        assert error is not None or message.offset() is not None
        outcomes.append(error)

    producer = Producer(
        {"bootstrap.servers": broker.bootstrap_servers, "acks": "all", "message.timeout.ms": timeout_ms, "log_level": 0}
    )
    for number in range(first, first + count):
        producer.produce(topic, value(number), partition=0, on_delivery=delivered)
        if number % PER_ROUND == PER_ROUND - 1:
            producer.flush()
    producer.flush()
    return outcomes


class Reader:
    """A consumer that goes on where it is."""

    def __init__(self, broker: BrokerProcess, topic: str, offset: int = 0) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": broker.bootstrap_servers,
                "group.id": "damage",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "reconnect.backoff.max.ms": 200,
                "retry.backoff.max.ms": 200,
                "log_level": 0,
            }
        )
        self._consumer.assign([TopicPartition(topic, 0, offset)])
        self.found: list[int] = []
        """Offsets, each with the value that it should have."""

    def read(self, upto: int | None = None) -> list[int]:
        """Read until an offset was seen, or until nothing came for a while."""
        deadline = time.monotonic() + (QUIET_S if upto is None else 60)
        while time.monotonic() < deadline and (upto is None or not self.found or self.found[-1] < upto):
            message = self._consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue  # an error that it tries again after
            offset = message.offset()
            assert offset is not None
            assert message.value() == value(offset)
            self.found.append(offset)
            if upto is None:
                deadline = time.monotonic() + QUIET_S
        return self.found

    def close(self) -> None:
        self._consumer.close()


@contextmanager
def reader(broker: BrokerProcess, topic: str, offset: int = 0) -> Iterator[Reader]:
    made = Reader(broker, topic, offset)
    try:
        yield made
    finally:
        made.close()


def broker_of(directory: Path, *, wal_uri: str, upload_interval_ms: int) -> BrokerProcess:
    return BrokerProcess(
        directory,
        {
            "object.store.uri": (directory / "objects").as_uri(),
            "wal.uri": wal_uri,
            "memory.bytes": 128 << 20,
            "upload.interval.ms": upload_interval_ms,
        },
    )


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x20]))


def frames_in(directory: Path) -> list[SurveyedFrame]:
    """The frames of a file WAL."""

    async def read() -> list[SurveyedFrame]:
        fd, size_bytes = open_read_only(directory)
        disk = ThreadDisk(fd, size_bytes=size_bytes, loop=asyncio.get_running_loop())
        try:
            return [
                frame._replace(payload=memoryview(b""))
                async for run in WalSurvey(disk).runs()
                for frame in frames_of(run)
            ]
        finally:
            await disk.close()

    return asyncio.run(read())


def damage_file_wal(directory: Path) -> Callable[[], None]:
    """Flip a bit of a record of `hurt`; returns what repairs it once the broker has set the file aside."""
    frame = next(
        each for each in frames_in(directory / "wal") if each.stream_id == 1 and each.base_offset >= COUNT // 2
    )
    at = RING_START_BYTES + frame.offset + FRAME_HEADER_SIZE_BYTES + 70
    flip(directory / "wal" / "wal", at)

    def repair() -> None:
        (aside,) = (directory / "wal").glob("damaged-*/wal")
        flip(aside, at)

    return repair


def damage_bucket_wal(directory: Path) -> Callable[[], None]:
    """Delete a slot by hand, of the time when only `hurt` was written; likewise."""
    slots = sorted(path for path in (directory / "objects" / "wal" / "log").rglob("*") if path.is_file())
    slots = [path for path in slots if path.stat().st_size > SLOT_HEADER_SIZE_BYTES]
    slot = slots[len(slots) // 4]
    whole = slot.read_bytes()
    slot.unlink()

    def repair() -> None:
        slot.write_bytes(whole)

    return repair


@pytest.mark.parametrize("kind", ["file", "bucket"])
def test_a_damaged_wal_stops_one_partition_and_a_repair_brings_it_back(tmp_path: Path, kind: str) -> None:
    in_bucket = kind == "bucket"
    objects = (tmp_path / "objects").as_uri()
    wal_uri = (
        f"objects+{objects}?capacity=64MiB&batch_interval_ms=1"
        if in_bucket
        else f"{(tmp_path / 'wal').as_uri()}?capacity=64MiB"
    )
    broker = broker_of(tmp_path, wal_uri=wal_uri, upload_interval_ms=3_600_000)
    with killed_at_last(broker):
        broker.start()
        broker.wait_ready()
        for topic in ("hurt", "sound"):
            create_topic(broker.bootstrap_servers, topic, 1)
            assert produce(broker, topic, 0, COUNT) == [None] * COUNT
        assert produce(broker, "hurt", COUNT, PER_ROUND) == [None] * PER_ROUND  # it goes on behind the damage
        broker.kill()
        repair = (damage_bucket_wal if in_bucket else damage_file_wal)(tmp_path)
        broker.start()
        broker.wait_ready()

        with reader(broker, "sound") as sound, reader(broker, "hurt") as hurt:
            assert sound.read(COUNT - 1) == [*range(COUNT)]
            assert hurt.read() == [], "not a record, and none skipped"
            assert produce(broker, "sound", COUNT, PER_ROUND) == [None] * PER_ROUND
            (outcome, *_) = produce(broker, "hurt", COUNT + PER_ROUND, 1, timeout_ms=3_000)
            assert outcome is not None
            assert outcome.code() in (KafkaError._MSG_TIMED_OUT, KafkaError.KAFKA_STORAGE_ERROR)
        log = broker.log_path.read_text()
        assert "acknowledged records may be lost in a damaged WAL" in log
        assert "topic=hurt partition=0" in log
        assert "topic=sound" not in log

        broker.kill()  # the crash in between changes nothing
        repair()
        broker.start()
        broker.wait_ready()
        with reader(broker, "sound") as sound, reader(broker, "hurt") as hurt:
            assert hurt.read(COUNT + PER_ROUND - 1) == [*range(COUNT + PER_ROUND)]
            assert sound.read(COUNT + PER_ROUND - 1) == [*range(COUNT + PER_ROUND)]
        assert produce(broker, "hurt", COUNT + PER_ROUND, PER_ROUND) == [None] * PER_ROUND
        broker.stop()


@pytest.mark.parametrize("kind", ["flipped", "deleted"])
def test_a_consumer_waits_at_a_damaged_object_and_goes_on_when_it_is_restored(tmp_path: Path, kind: str) -> None:
    broker = broker_of(tmp_path, wal_uri=f"{(tmp_path / 'wal').as_uri()}?capacity=64MiB", upload_interval_ms=100)
    with killed_at_last(broker):
        broker.start()
        broker.wait_ready()
        create_topic(broker.bootstrap_servers, "hurt", 1)
        for number in range(0, COUNT, COUNT // 3):  # an object each
            assert produce(broker, "hurt", number, COUNT // 3) == [None] * (COUNT // 3)
            time.sleep(0.5)
        broker.kill()
        objects = sorted(
            (path for path in (tmp_path / "objects" / "data").rglob("*") if path.is_file()),
            key=lambda path: int(path.name),
        )
        hurt_object = objects[len(objects) // 2]
        whole = hurt_object.read_bytes()
        if kind == "flipped":
            flip(hurt_object, 80)
        else:
            hurt_object.unlink()
        broker.start()
        broker.wait_ready()
        with reader(broker, "hurt") as consumer:
            found = consumer.read()
            assert 0 < len(found) < COUNT
            assert found == [*range(len(found))], "in order, up to the damage, and no further"
            assert "records are damaged" in broker.log_path.read_text()
            assert f"first_offset={len(found)}" in broker.log_path.read_text()
            hurt_object.write_bytes(whole)
            assert consumer.read(COUNT - 1) == [*range(COUNT)]
        broker.stop()
