"""Damaged objects (I7): named with their offsets, refused and never skipped; all else goes on, and comes back when they do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.__main__ import main
from broker.inspect.command import EXIT_FINDINGS
from broker.node import Node
from protocol.errors import ErrorCode
from protocol.messages.delete_records import DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsTopic
from protocol.messages.init_producer_id import InitProducerIdRequest
from s3stream.paths import Paths
from tests.broker.conftest import StartNode
from tests.broker.scraping import get, scrape
from tests.broker.wire import Wire, batch

DAMAGED = ErrorCode.KAFKA_STORAGE_ERROR


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1  # in the first block: an object of these tests is some 300 bytes
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def delete(path: Path) -> None:
    path.unlink()


def replace_by_another(path: Path) -> None:
    others = [each for each in path.parents[1].rglob("*") if each.is_file() and each != path]
    path.write_bytes(others[0].read_bytes())


DAMAGES = [flip_a_bit, truncate, delete, replace_by_another]


async def uploaded(node: Node, wire: Wire, topic: str, first: int, count: int) -> None:
    """Produce numbered records and have them put into an object."""
    for number in range(first, first + count):
        assert (await wire.produce(topic, batch(b"%d" % number))).error_code == 0
    storage = node.running.storage
    storage.seal()
    await storage.uploads.drain()


def object_of(node: Node, topic: str, offset: int, objects: Path) -> Path:
    """The file that holds a partition's records."""
    partition = node.running.broker.topics.by_name[topic].partitions[0]
    assert partition is not None
    (found,) = node.running.storage.metadata.locate(partition.stream.stream_id, offset, limit=1)
    return objects / Paths().data_object(found.object_id)


async def three_objects(start_node: StartNode) -> None:
    """Offsets 0..9, 10..19 and 20..29 of `hurt` in an object each, and a sound topic; then an orderly end."""
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("hurt")
        await wire.create_topic("sound")
        for first in (0, 10, 20):
            await uploaded(node, wire, "hurt", first, 10)
        await uploaded(node, wire, "sound", 0, 10)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_offsets_are_refused_named_and_never_skipped(
    start_node: StartNode,
    tmp_path: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await three_objects(start_node)
    async with start_node(metrics_listeners="HTTP://127.0.0.1:0") as node:
        path = object_of(node, "hurt", 10, tmp_path / "objects")
        whole = path.read_bytes()
        damage(path)
        async with await Wire.connect(node.bootstrap_servers) as wire:
            # What lies before it and behind it is read; a reader that comes to it stays there.
            assert await wire.fetch_values("hurt", 0) == [b"%d" % number for number in range(10)]
            assert await wire.fetch_values("hurt", 20) == [b"%d" % number for number in range(20, 30)]
            for offset in (10, 15, 19):
                found = await wire.fetch("hurt", offset)
                assert (found.error_code, bytes(found.records)) == (DAMAGED, b"")
            # Neither other partitions nor producers are concerned.
            assert await wire.fetch_all("sound") == [b"%d" % number for number in range(10)]
            assert (await wire.produce("hurt", batch(b"30"))).base_offset == 30
            assert (await get(node, "/readyz"))[0] == 200

            page = await scrape(node)
            place = {"topic": "hurt", "partition": "0", "place": f"object {path.name}"}
            assert page("tidelog_damaged_ranges", source="object") == 1
            assert page("tidelog_damaged_range_first_offset", **place) == 10
            assert page("tidelog_damaged_range_last_offset", **place) == 19
            (told,) = [each for each in caplog.records if each.name == "tidelog.damage"]
            assert "records are damaged: hurt-0, offsets 10 to 19" in told.getMessage()
            assert told.args["key"] == str(path.relative_to(tmp_path / "objects"))  # type: ignore[index,call-overload]
            assert "restore the object under its key" in told.args["advice"]  # type: ignore[index,call-overload]
            status = await asyncio.to_thread(
                main, ["inspect", "partition", "hurt-0", "--check", "--bucket", (tmp_path / "objects").as_uri()]
            )
            assert status == EXIT_FINDINGS
            assert "DAMAGE: hurt-0, offsets 10 to 19 cannot be read" in capsys.readouterr().out

            path.write_bytes(whole)  # the operator restores it: no restart is needed
            assert await wire.fetch_values("hurt", 10, partition_max_bytes=1) == [b"10"]
            assert await wire.fetch_all("hurt") == [b"%d" % number for number in range(31)]
            await eventually_shows(node, 0, "tidelog_damaged_ranges", source="object")


@pytest.mark.parametrize("why", ["the store is away", "a newer version wrote it"])
async def test_why_sound_records_cannot_be_read_is_in_the_log(
    start_node: StartNode, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await three_objects(start_node)
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        if why == "the store is away":
            node.running.store.failing = True
        else:
            monkeypatch.setattr("s3stream.object_format.FORMAT_VERSION", 0)
        assert (await wire.fetch("hurt", 0)).error_code != 0
        monkeypatch.undo()
        node.running.store.failing = False
        told = [each.getMessage() for each in caplog.records if each.name == "tidelog.fetch"]
        assert told
        assert told[0].startswith("records cannot be read: ")
        assert told[0].endswith("(hurt-0)")
        assert await wire.fetch_values("hurt", 0, partition_max_bytes=1) == [b"0"]


async def test_a_damaged_state_is_rebuilt_from_the_one_before_and_the_records(
    start_node: StartNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """I11: a producer's retry is known although the newest state cannot be read."""
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        pid = (await wire.call("InitProducerId", 4, InitProducerIdRequest(transactional_id=None))).producer_id
        for sequence in range(2):
            numbered = batch(b"%d" % sequence, producer_id=pid, producer_epoch=0, base_sequence=sequence)
            assert (await wire.produce("t", numbered)).base_offset == sequence
            node.running.storage.seal()
            await node.running.storage.uploads.drain()
        newest = object_of(node, "t", 1, tmp_path / "objects")
    data = bytearray(newest.read_bytes())
    data[len(data) - 64 - 2 * 64 - 1] ^= 1  # the last byte before index and footer is the state's
    newest.write_bytes(data)
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert (
            await wire.produce("t", batch(b"1", producer_id=pid, producer_epoch=0, base_sequence=1))
        ).base_offset == 1
        assert "a state is damaged" in caplog.text
        assert await wire.fetch_all("t") == [b"0", b"1"]


async def test_a_partition_that_cannot_know_its_producers_is_offline_until_the_object_or_the_range_is_gone(
    start_node: StartNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.partitions.OFFLINE_RETRY_DELAY_S", 0.05)
    await three_objects(start_node)
    async with start_node() as node:
        path = object_of(node, "hurt", 20, tmp_path / "objects")
    whole = path.read_bytes()
    path.unlink()  # the newest records, and the newest state
    async with (
        start_node(metrics_listeners="HTTP://127.0.0.1:0") as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        refused = await wire.produce("hurt", batch(b"30"))
        assert (refused.error_code, "offline" in refused.error_message) == (DAMAGED, True)
        assert await wire.fetch_values("hurt", 0) == [b"%d" % number for number in range(20)]
        assert (await wire.produce("sound", batch(b"10"))).base_offset == 10
        page = await scrape(node)
        assert (page("tidelog_offline_partitions", reason="damage"), page("tidelog_partitions_loading")) == (1, 0)
        assert (await get(node, "/readyz"))[0] == 200

        path.write_bytes(whole)  # one way out: no restart is needed
        await eventually_takes(wire, "hurt", b"30", 30)
        await eventually_shows(node, 0, "tidelog_offline_partitions", reason="damage")


async def test_an_operator_gives_a_damaged_range_up_by_deleting_records(
    start_node: StartNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.partitions.OFFLINE_RETRY_DELAY_S", 0.05)
    await three_objects(start_node)
    async with start_node() as node:
        object_of(node, "hurt", 20, tmp_path / "objects").unlink()
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert (await wire.produce("hurt", batch(b"30"))).error_code == DAMAGED
        response = await wire.call(
            "DeleteRecords",
            2,
            DeleteRecordsRequest(
                topics=[
                    DeleteRecordsTopic(name="hurt", partitions=[DeleteRecordsPartition(partition_index=0, offset=30)])
                ],
                timeout_ms=10_000,
            ),
        )
        assert response.topics[0].partitions[0].low_watermark == 30
        await eventually_takes(wire, "hurt", b"30", 30)
        assert await wire.fetch_values("hurt", 30) == [b"30"]
        assert not node.running.storage.reader.damage.ranges()


async def eventually_takes(wire: Wire, topic: str, value: bytes, offset: int) -> None:
    async with asyncio.timeout(30):
        while (answer := await wire.produce(topic, batch(value))).error_code == DAMAGED:
            await asyncio.sleep(0.02)
    assert (answer.error_code, answer.base_offset) == (0, offset)


async def eventually_shows(node: Node, value: float, name: str, **labels: str) -> None:
    """A page of metrics is kept for a moment."""
    async with asyncio.timeout(30):
        while (await scrape(node))(name, **labels) != value:
            await asyncio.sleep(0.1)
