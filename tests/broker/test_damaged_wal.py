"""A damaged WAL (I1, I7): partitions that lost nothing go on; what may be lost is named, and its partition offline until it is repaired or given up."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.__main__ import main
from broker.config import BrokerSettings
from broker.inspect.command import EXIT_FINDINGS
from broker.inspect.wal import open_wal_disk
from broker.node import Node
from protocol.errors import ErrorCode
from tests.broker.conftest import StartNode
from tests.broker.scraping import get, scrape
from tests.broker.wire import Wire, batch, records_in
from wal.frame import FRAME_HEADER_SIZE_BYTES
from wal.header import RING_START_BYTES
from wal.survey import SurveyedFrame, WalSurvey, frames_of

OFFLINE = ErrorCode.KAFKA_STORAGE_ERROR
TOPICS = ("one", "two", "three")
ROUNDS = 4


class Crashed:
    """What a node left behind that was killed, and another node on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.wal = directory / "wal"
        self.settings = BrokerSettings(
            listeners="PLAINTEXT://127.0.0.1:0",
            metrics_listeners="HTTP://127.0.0.1:0",
            wal_uri=f"{self.wal.as_uri()}?capacity=16MiB",
            object_store_uri=(directory / "objects").as_uri(),
            memory_bytes=128 << 20,
        )

    @asynccontextmanager
    async def node(self) -> AsyncIterator[tuple[Node, Wire]]:
        async with Node(self.settings, rng=random.Random()) as node, await Wire.connect(node.bootstrap_servers) as wire:
            yield node, wire

    async def frames(self) -> list[SurveyedFrame]:
        async with open_wal_disk(self.wal) as disk:
            return [
                frame._replace(payload=memoryview(b""))
                async for run in WalSurvey(disk).runs()
                for frame in frames_of(run)
            ]

    def flip(self, log_offset: int) -> None:
        """Damage one byte of the ring, which is on its first lap."""
        with open(self.wal / "wal", "r+b") as file:
            file.seek(RING_START_BYTES + log_offset)
            byte = file.read(1)[0]
            file.seek(RING_START_BYTES + log_offset)
            file.write(bytes([byte ^ 0x10]))

    def places(self) -> list[str]:
        return ["--set", f"wal.uri={self.settings.wal_uri}", "--bucket", self.settings.object_store_uri]


@pytest.fixture
async def crashed(start_node: StartNode, tmp_path: Path) -> Crashed:
    """Three topics, four records each in turn, all of them in the WAL alone."""
    async with start_node(upload_interval_ms=600_000) as node, await Wire.connect(node.bootstrap_servers) as wire:
        for topic in TOPICS:
            await wire.create_topic(topic)
        for number in range(ROUNDS):
            for topic in TOPICS:
                assert (await wire.produce(topic, batch(b"%d" % number))).base_offset == number
        for name in ("wal", "objects"):
            await asyncio.to_thread(shutil.copytree, tmp_path / name, tmp_path / "crashed" / name)
    return Crashed(tmp_path / "crashed")


def values(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


async def refused(wire: Wire, topic: str) -> None:
    """Neither produce nor fetch get past an offline partition, at any offset."""
    answer = await wire.produce(topic, batch(b"more"))
    assert (answer.error_code, "offline" in (answer.error_message or "")) == (OFFLINE, True), answer
    for offset in range(ROUNDS + 1):
        assert (await wire.fetch(topic, offset)).error_code == OFFLINE


async def test_a_damaged_record_stops_its_partition_and_no_other(
    crashed: Crashed, caplog: pytest.LogCaptureFixture
) -> None:
    second = (await crashed.frames())[len(TOPICS)]  # "one" at offset 1
    crashed.flip(second.offset + FRAME_HEADER_SIZE_BYTES + 20)
    async with crashed.node() as (node, wire):
        await refused(wire, "one")
        for topic in ("two", "three"):
            assert await wire.fetch_all(topic) == values(0, 1, 2, 3)
            assert (await wire.produce(topic, batch(b"4"))).base_offset == 4
        page = await scrape(node)
        place = {"topic": "one", "partition": "0", "place": f"WAL {damaged_id(crashed)}"}
        assert page("tidelog_offline_partitions", reason="damage") == 1
        assert page("tidelog_damaged_ranges", source="wal") == 1
        assert page("tidelog_damaged_range_first_offset", **place) == 1
        assert page("tidelog_damaged_range_last_offset", **place) == 1
        assert (await get(node, "/readyz"))[0] == 200
        assert "one-0 is offline, offsets 1 to 1 are missing" in caplog.text
    async with crashed.node() as (node, wire):  # it is remembered
        await refused(wire, "one")
        assert await wire.fetch_all("two") == values(0, 1, 2, 3, 4)
        await wire.create_topic("four")  # new topics are not concerned
        assert (await wire.produce("four", batch(b"0"))).base_offset == 0


def damaged_id(crashed: Crashed) -> str:
    (aside,) = crashed.wal.glob("damaged-*")
    return aside.name.removeprefix("damaged-")


async def test_a_repaired_wal_gives_everything_back(crashed: Crashed) -> None:
    second = (await crashed.frames())[len(TOPICS)]
    at = second.offset + FRAME_HEADER_SIZE_BYTES + 20
    crashed.flip(at)
    async with crashed.node() as (_, wire):
        await refused(wire, "one")
    main_wal, crashed.wal = crashed.wal, next(crashed.wal.glob("damaged-*"))
    crashed.flip(at)  # back
    crashed.wal = main_wal
    async with crashed.node() as (node, wire):
        for topic in TOPICS:
            assert await wire.fetch_all(topic) == values(0, 1, 2, 3)
            assert (await wire.produce(topic, batch(b"4"))).base_offset == 4
        assert (await scrape(node))("tidelog_offline_partitions", reason="damage") == 0
    assert not list(crashed.wal.glob("damaged-*")), "nothing refers to it"


async def test_where_nobody_knows_what_a_hole_held_a_partition_goes_on_only_if_it_continues_behind_it(
    crashed: Crashed,
) -> None:
    """The header of the last record but one is gone: it may have been anybody's. `three` wrote behind it, the others did not."""
    crashed.flip((await crashed.frames())[-2].offset + 8)
    async with crashed.node() as (node, wire):
        await refused(wire, "one")  # lost nothing; but who can tell?
        await refused(wire, "two")
        assert await wire.fetch_all("three") == values(0, 1, 2, 3)
        page = await scrape(node)
        place = {"topic": "two", "partition": "0", "place": f"WAL {damaged_id(crashed)}"}
        assert page("tidelog_damaged_range_first_offset", **place) == 3
        assert page("tidelog_damaged_range_last_offset", **place) == float("inf")
        assert page("tidelog_offline_partitions", reason="damage") == 2


async def test_damage_that_proves_nothing_is_the_end_of_the_log(crashed: Crashed) -> None:
    """The very last write may have been torn by the crash: nothing in it was acknowledged, as far as anybody can tell."""
    crashed.flip((await crashed.frames())[-1].offset + 8)
    async with crashed.node() as (_, wire):
        assert await wire.fetch_all("three") == values(0, 1, 2)
        assert (await wire.produce("one", batch(b"4"))).base_offset == 4
    assert not list(crashed.wal.glob("damaged-*"))


async def test_what_was_uploaded_already_is_no_loss(start_node: StartNode, tmp_path: Path) -> None:
    async with start_node(upload_interval_ms=600_000) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("one")
        await wire.produce("one", batch(b"0"))
        await wire.produce("one", batch(b"1"))
        await asyncio.to_thread(shutil.copytree, tmp_path / "wal", tmp_path / "crashed" / "wal")  # before the trim
        node.running.storage.seal()
        await node.running.storage.uploads.drain()
        await asyncio.to_thread(shutil.copytree, tmp_path / "objects", tmp_path / "crashed" / "objects")
    left = Crashed(tmp_path / "crashed")
    left.flip((await left.frames())[0].offset + FRAME_HEADER_SIZE_BYTES + 20)
    async with left.node() as (_, wire):
        assert await wire.fetch_all("one") == values(0, 1)
        assert (await wire.produce("one", batch(b"2"))).base_offset == 2
    assert not list(left.wal.glob("damaged-*")), "it was set aside, and nothing referred to it"


async def abandon(crashed: Crashed, *arguments: str) -> int:
    command = [
        "--log-level",
        "error",
        "wal",
        "abandon",
        damaged_id(crashed),
        "--slack-offsets",
        "1000",
        *crashed.places(),
    ]
    return await asyncio.to_thread(main, [*command, *arguments])


async def test_giving_up_gives_up_exactly_what_is_missing(crashed: Crashed, capsys: pytest.CaptureFixture[str]) -> None:
    second = (await crashed.frames())[len(TOPICS)]
    crashed.flip(second.offset + FRAME_HEADER_SIZE_BYTES + 20)
    async with crashed.node() as (_, wire):
        await refused(wire, "one")
    assert await abandon(crashed) == 2
    told = capsys.readouterr().out
    assert "one-0: offsets [1, 2) are lost, and given up; [2, 4) stay, and are recovered at the next start" in told
    assert "nothing was done" in told
    async with crashed.node() as (_, wire):
        await refused(wire, "one")
    assert await abandon(crashed, "--yes") == 0
    async with crashed.node() as (node, wire):
        assert await wire.fetch_all("one") == values(0, 2, 3)
        assert [record.offset for record in records_in(await wire.fetch("one", 1))] == [2, 3]
        assert (await wire.produce("one", batch(b"4"))).base_offset == 4
        assert (await scrape(node))("tidelog_offline_partitions", reason="damage") == 0
    assert not list(crashed.wal.glob("damaged-*"))


async def test_where_nobody_knows_how_much_is_missing_the_gap_is_past_all_that_can_be(
    crashed: Crashed, capsys: pytest.CaptureFixture[str]
) -> None:
    crashed.flip((await crashed.frames())[-2].offset + 8)
    async with crashed.node() as (_, wire):
        await refused(wire, "two")
    assert await abandon(crashed, "--yes") == 0
    told = capsys.readouterr().out
    assert "one-0: offsets [4, 1004) are given up" in told
    assert "two-0: offsets [3, 1003) are given up" in told
    async with crashed.node() as (node, wire):
        for topic, known in (("one", 4), ("two", 3)):
            assert (await wire.produce(topic, batch(b"more"))).base_offset == known + 1000
            assert await wire.fetch_all(topic) == [*values(*range(known)), b"more"]
        assert node.running.broker.partitions.offline_count == 0
    assert not list(crashed.wal.glob("damaged-*"))


async def test_inspect_tells_what_is_lost_and_what_is_intact(
    crashed: Crashed, capsys: pytest.CaptureFixture[str]
) -> None:
    second = (await crashed.frames())[len(TOPICS)]
    crashed.flip(second.offset + FRAME_HEADER_SIZE_BYTES + 20)
    look = ["inspect", "wal", *crashed.places()]
    assert await asyncio.to_thread(main, look) == EXIT_FINDINGS  # before anybody started
    told = capsys.readouterr().out
    assert "DAMAGE: one-0: complete up to 1; offsets 1 to 1 are missing; intact behind that: [2, 4)" in told
    assert "2 partitions of 3 lost nothing that was acknowledged" in told
    async with crashed.node():
        pass
    assert await asyncio.to_thread(main, look) == EXIT_FINDINGS
    aside = crashed.wal / f"damaged-{damaged_id(crashed)}"
    assert f"set aside in {aside}: 1 partition offline for it" in capsys.readouterr().out
    assert await asyncio.to_thread(main, ["inspect", "wal", str(aside), *crashed.places()]) == EXIT_FINDINGS
    assert "one-0: complete up to 1; offsets 1 to 1 are missing" in capsys.readouterr().out
    assert await asyncio.to_thread(main, ["inspect", "partition", "one-0", *crashed.places()]) == EXIT_FINDINGS
    assert "one-0: complete up to 1; offsets 1 to 1 are missing; intact behind that: [2, 4)" in capsys.readouterr().out
