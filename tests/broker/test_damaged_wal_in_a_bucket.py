"""A damaged WAL in a bucket (I1, I7), as in `test_damaged_wal.py`: slots that are changed, deleted, swapped by hand."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.__main__ import main
from broker.config import BrokerSettings
from broker.inspect.command import EXIT_CLEAN, EXIT_FINDINGS
from broker.node import Node
from protocol.errors import ErrorCode
from s3stream.errors import StorageFenced
from tests.broker.conftest import StartNode
from tests.broker.scraping import scrape
from tests.broker.wire import Wire, batch
from wal.frame import FRAME_HEADER_SIZE_BYTES
from wal.slot import SLOT_HEADER_SIZE_BYTES

OFFLINE = ErrorCode.KAFKA_STORAGE_ERROR
TOPICS = ("one", "two", "three")
ROUNDS = 4


class Crashed:
    """What a node left in its bucket that was killed, and another node on it."""

    def __init__(self, directory: Path) -> None:
        self.bucket = directory
        self.settings = BrokerSettings(
            listeners="PLAINTEXT://127.0.0.1:0",
            metrics_listeners="HTTP://127.0.0.1:0",
            wal_uri=f"objects+{directory.as_uri()}?capacity=16MiB&batch_interval_ms=0",
            object_store_uri=directory.as_uri(),
            memory_bytes=128 << 20,
        )

    @asynccontextmanager
    async def node(self) -> AsyncIterator[tuple[Node, Wire]]:
        async with Node(self.settings, rng=random.Random()) as node, await Wire.connect(node.bootstrap_servers) as wire:
            yield node, wire

    @property
    def slots(self) -> list[Path]:
        """The batches of the first epoch that has any, in order: each holds one record, of each topic in turn."""
        found = sorted(path for path in (self.bucket / "wal" / "log").rglob("*") if path.is_file())
        return [path for path in found if path.stat().st_size > SLOT_HEADER_SIZE_BYTES]

    def slot_of(self, topic: str, offset: int) -> Path:
        return self.slots[offset * len(TOPICS) + TOPICS.index(topic)]

    async def run(self, *command: str) -> int:
        places = ["--set", f"wal.uri={self.settings.wal_uri}", "--bucket", self.settings.object_store_uri]
        return await asyncio.to_thread(main, ["--log-level", "error", *command, *places])


@pytest.fixture
async def crashed(start_node: StartNode, tmp_path: Path) -> Crashed:
    """Three topics, four records each in turn, a slot each, all of them in the WAL alone."""
    bucket = tmp_path / "bucket"
    settings = Crashed(bucket).settings
    async with (
        start_node(
            upload_interval_ms=600_000, wal_uri=settings.wal_uri, object_store_uri=settings.object_store_uri
        ) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        for topic in TOPICS:
            await wire.create_topic(topic)
        for number in range(ROUNDS):
            for topic in TOPICS:
                assert (await wire.produce(topic, batch(b"%d" % number))).base_offset == number
        await asyncio.to_thread(shutil.copytree, bucket, tmp_path / "crashed")
    left = Crashed(tmp_path / "crashed")
    assert len(left.slots) == ROUNDS * len(TOPICS)
    return left


def values(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


def flip(at: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 0x10
        path.write_bytes(data)

    return damage


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def replace_by_another(path: Path) -> None:
    path.write_bytes(min(each for each in path.parent.iterdir() if each != path).read_bytes())


PAYLOAD, FRAME, HEADER = SLOT_HEADER_SIZE_BYTES + FRAME_HEADER_SIZE_BYTES + 10, SLOT_HEADER_SIZE_BYTES + 10, 40


async def refused(wire: Wire, topic: str) -> None:
    assert (await wire.produce(topic, batch(b"more"))).error_code == OFFLINE
    for offset in range(ROUNDS + 1):
        assert (await wire.fetch(topic, offset)).error_code == OFFLINE


@pytest.mark.parametrize("damage", [flip(PAYLOAD), flip(FRAME), flip(HEADER), delete, truncate, replace_by_another])
async def test_a_damaged_slot_stops_the_partition_of_its_record_and_no_other(
    crashed: Crashed,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slot = crashed.slot_of("two", 1)
    whole = slot.read_bytes()
    damage(slot)
    for _ in range(2):  # it is remembered
        async with crashed.node() as (node, wire):
            await refused(wire, "two")
            for topic in ("one", "three"):
                assert (await wire.fetch_all(topic))[:ROUNDS] == values(0, 1, 2, 3)
                assert (await wire.produce(topic, batch(b"more"))).error_code == 0
            assert (await scrape(node))("tidelog_offline_partitions", reason="damage") == 1
    assert "two-0 is offline, offsets 1 to 1 are missing" in caplog.text
    assert await crashed.run("inspect", "wal") == EXIT_FINDINGS
    assert (
        "DAMAGE: two-0: complete up to 1; offsets 1 to 1 are missing; intact behind that: [2, 4)"
        in capsys.readouterr().out
    )

    assert await crashed.run("verify") == EXIT_FINDINGS
    told = capsys.readouterr().out
    assert "FINDING offline: stream 2 two-0: acknowledged records may be missing in WAL" in told
    assert "stream 2 two-0, offsets [1, 2): these records are missing" in told
    assert "2 findings" in told

    slot.write_bytes(whole)  # from the bucket's versions
    async with crashed.node() as (node, wire):
        assert await wire.fetch_all("two") == values(0, 1, 2, 3)
        assert (await wire.produce("two", batch(b"more"))).base_offset == ROUNDS
    assert not (crashed.bucket / "wal" / "damaged" / "1").exists() or not list(
        (crashed.bucket / "wal" / "damaged" / "1").iterdir()
    )
    assert await crashed.run("inspect", "wal") == EXIT_CLEAN
    assert await crashed.run("verify") == EXIT_CLEAN


async def test_giving_up_gives_up_exactly_what_is_missing(crashed: Crashed, capsys: pytest.CaptureFixture[str]) -> None:
    crashed.slot_of("two", 1).unlink()
    async with crashed.node() as (_, wire):
        await refused(wire, "two")
    (aside,) = (crashed.bucket / "wal" / "damaged" / "1").iterdir()
    assert await crashed.run("wal", "abandon", aside.name, "--yes") == EXIT_CLEAN
    assert "two-0: offsets [1, 2) are lost, and given up; [2, 4) stay" in capsys.readouterr().out
    async with crashed.node() as (_, wire):
        assert await wire.fetch_all("two") == values(0, 2, 3)
        assert (await wire.produce("two", batch(b"more"))).base_offset == ROUNDS


async def test_a_slot_that_cannot_be_read_may_have_been_acknowledged_although_it_was_the_last(crashed: Crashed) -> None:
    flip(HEADER)(crashed.slot_of("three", 3))
    async with crashed.node() as (_, wire):
        for topic in TOPICS:  # nobody knows whose it was
            await refused(wire, topic)
        await wire.create_topic("four")
        assert (await wire.produce("four", batch(b"0"))).base_offset == 0


async def test_a_writer_that_still_lives_is_stopped_before_anything_is_taken_out(
    start_node: StartNode, tmp_path: Path
) -> None:
    """Two processes of one node, and damage: what the first acknowledges after the second came is nobody's loss, for there is nothing."""
    left = Crashed(tmp_path / "bucket")
    first = start_node(
        upload_interval_ms=600_000,
        shutdown_timeout_ms=100,
        wal_uri=left.settings.wal_uri,
        object_store_uri=left.settings.object_store_uri,
    )
    node = await first.__aenter__()
    async with await Wire.connect(node.bootstrap_servers) as wire:
        for topic in TOPICS:
            await wire.create_topic(topic)
        for number in range(ROUNDS):
            for topic in TOPICS:
                await wire.produce(topic, batch(b"%d" % number))
        left.slot_of("two", 1).unlink()
        async with left.node() as (_, other):
            await refused(other, "two")
            assert await other.fetch_all("one") == values(0, 1, 2, 3)
            assert (await wire.produce("one", batch(b"late"))).error_code != 0
            assert await other.fetch_all("one") == values(0, 1, 2, 3)
            assert isinstance(node.running.storage.failed, StorageFenced)
    await first.__aexit__(None, None, None)
