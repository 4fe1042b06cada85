"""`tidelog restore`: a deleted topic, trimmed records and unwanted ones, undone on a real bucket and served by a real node."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker.__main__ import main
from broker.inspect.rows import when
from broker.node import Node
from broker.restore import moment_ms
from s3stream.objectstore import Buffer, ObjectStore
from tests.broker.conftest import StartNode
from tests.broker.kept import upload_all
from tests.broker.wire import Wire, batch, eventually
from tests.stores.fixtures import S3_SERVERS
from tests.stores.s3_server import S3Server

SLACK = 1_000


@dataclass(frozen=True, kw_only=True)
class Tool:
    """The command line on a bucket, as an operator calls it."""

    uri: str
    capsys: pytest.CaptureFixture[str]

    async def run(self, *arguments: str) -> int:
        self.capsys.readouterr()
        return await asyncio.to_thread(main, ["--log-level", "error", *arguments, "--bucket", self.uri])

    async def restore(self, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        """Exit status and rows."""
        status = await self.run("restore", "--slack-offsets", str(SLACK), "--json", *arguments)
        return status, list(map(json.loads, self.capsys.readouterr().out.splitlines()))

    async def refusal(self, *arguments: str) -> str:
        assert await self.run("restore", *arguments, "--yes") == 2
        return self.capsys.readouterr().err

    async def is_sound(self) -> bool:
        return await self.run("verify") == 0


@pytest.fixture
def tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tool:
    """On a directory."""
    return Tool(uri=(tmp_path / "objects").as_uri(), capsys=capsys)


@pytest.fixture(params=["directory", *S3_SERVERS])
def anywhere(
    request: pytest.FixtureRequest,
    s3_server_named: Callable[[str], S3Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Tool:
    if request.param == "directory":
        return Tool(uri=(tmp_path / "objects").as_uri(), capsys=capsys)
    server = s3_server_named(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return Tool(uri=server.uri(server.new_bucket()), capsys=capsys)


def index_of(node: Node) -> int:
    return node.running.broker.controller.applied_index


async def delete_topic(node: Node, name: str) -> None:
    controller = node.running.broker.controller
    topic = controller.image.topic(name)
    assert topic is not None
    await controller.delete_topics([topic.topic_id])


async def loaded(node: Node) -> None:
    await eventually(lambda: not node.running.broker.partitions.loading_count, "the partitions' state")


async def opened(node: Node, name: str) -> None:
    """A topic that came back while the node runs is there, and open."""

    def is_open() -> bool:
        topic = node.running.broker.topics.by_name.get(name)
        return topic is not None and all(each is not None and each.loaded for each in topic.partitions)

    await eventually(is_open, f"topic {name}")


def partitions(rows: list[dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """(regained, given up) by partition."""
    return {row["partition"]: (row["regained"], row["given_up"]) for row in rows if row["kind"] == "partition-change"}


async def test_a_deleted_topic_comes_back(start_node: StartNode, anywhere: Tool) -> None:
    tool = anywhere
    values = [b"%03d" % number + bytes(5_000) for number in range(100)]
    async with (
        start_node(object_store_uri=tool.uri) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        topic_id = await wire.create_topic("orders", partitions=2, retention_ms="-1")
        await wire.create_topic("kept")
        for value in values:
            await wire.produce("orders", batch(value))
        await wire.produce("orders", batch(b"other"), partition=1)
        await upload_all(node)
        before = index_of(node)
        await delete_topic(node, "orders")
        await wire.produce("kept", batch(b"since then"))

    status, rows = await tool.restore("--at-index", str(before), "--topic", "orders")
    assert status == 2, "nothing was done"
    assert rows[1] == {"kind": "topic-change", "topic": "orders", "change": "comes back"}
    assert partitions(rows) == {"orders-0": ([[0, 100]], []), "orders-1": ([[0, 1]], [])}
    assert rows[-1]["message"].startswith("nothing was done. To change 2 partitions as told, say --yes")
    status, rows = await tool.restore("--at-index", str(before), "--topic", "orders", "--yes")
    assert (status, rows[-1]["message"].split(",")[0]) == (0, "restored")
    assert await tool.is_sound()

    async with (
        start_node(object_store_uri=tool.uri) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await loaded(node)
        assert await wire.fetch_all("orders") == values
        assert await wire.fetch_all("orders", partition=1) == [b"other"]
        assert await wire.fetch_all("kept") == [b"since then"], "other topics stay as they are"
        topic = node.running.broker.controller.image.topic("orders")
        assert topic is not None
        assert (topic.topic_id, topic.configs) == (topic_id, {"retention.ms": "-1"})
        # It was open when it was deleted, so offsets that may have been acknowledged since are left out (I2).
        assert (await wire.produce("orders", batch(b"new"))).base_offset == 100 + SLACK
        assert await wire.fetch_all("orders") == [*values, b"new"]
        await upload_all(node)
    assert await tool.is_sound()


async def test_trimmed_records_come_back_and_later_ones_are_given_up(start_node: StartNode, tool: Tool) -> None:
    async with (
        start_node(object_store_uri=tool.uri) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        for number in range(5):
            await wire.produce("t", batch(b"%d" % number))
            await upload_all(node)
        before = index_of(node)
        partition = node.running.broker.topics.by_name["t"].partitions[0]
        assert partition is not None
        former_epoch = partition.stream.leader_epoch
        await partition.trim(3)
        for number in range(3):
            await wire.produce("t", batch(b"rubbish %d" % number))
        assert (await wire.list_offset("t", -2)).offset == 3

    status, rows = await tool.restore("--at-index", str(before), "--yes")
    assert status == 0
    assert partitions(rows) == {"t-0": ([[0, 3]], [[5, 8]])}

    async with (
        start_node(object_store_uri=tool.uri) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
        await Wire.connect(node.bootstrap_servers) as reader,
    ):
        await loaded(node)
        assert await wire.fetch_all("t") == [b"%d" % number for number in range(5)]
        waiting = asyncio.create_task(reader.fetch_values("t", 8, max_wait_ms=30_000))
        await eventually(lambda: node.running.broker.waiting_fetches.fetch_count == 1, "a consumer at its old position")
        assert (await wire.produce("t", batch(b"new"))).base_offset == 8, "no offset is used twice (I2)"
        assert await waiting == [b"new"]
        partition = node.running.broker.topics.by_name["t"].partitions[0]
        assert partition is not None
        assert partition.stream.leader_epoch > former_epoch
    assert await tool.is_sound()


async def test_a_restore_is_undone_by_another(start_node: StartNode, tool: Tool) -> None:
    async with (
        start_node(object_store_uri=tool.uri) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        await wire.produce("t", batch(b"0"))
        await upload_all(node)
        before = index_of(node)
        await wire.produce("t", batch(b"1"))
        await wire.create_topic("later")
        await wire.produce("later", batch(b"x"))
    status, rows = await tool.restore("--at-index", str(before), "--yes")
    assert status == 0
    assert partitions(rows) == {"t-0": ([], [[1, 2]]), "later-0": ([], [[0, 1]])}
    undo = rows[-1]["message"].rpartition("--at-index ")[2]

    assert (await tool.restore("--at-index", str(before)))[1][-1]["message"].startswith("nothing would change")
    status, rows = await tool.restore("--at-index", undo, "--yes")
    assert status == 0
    assert partitions(rows) == {"t-0": ([[1, 2]], []), "later-0": ([[0, 1]], [])}
    assert await tool.is_sound()
    async with (
        start_node(object_store_uri=tool.uri) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await loaded(node)
        assert await wire.fetch_all("t") == [b"0", b"1"]
        assert await wire.fetch_all("later") == [b"x"]


async def test_a_running_node_keeps_its_partitions_and_gets_a_deleted_topic_back(
    start_node: StartNode, tool: Tool
) -> None:
    async with (
        start_node(object_store_uri=tool.uri) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("deleted")
        await wire.create_topic("open")
        for number in range(10):
            await wire.produce("deleted", batch(b"%d" % number))
        await upload_all(node)
        before = index_of(node)
        await delete_topic(node, "deleted")
        await wire.produce("open", batch(b"x"))
        await upload_all(node)

        refusal = await tool.refusal("--at-index", str(before))
        assert "partitions are open: open-0 on node 1" in refusal
        assert "Stop every broker in order" in refusal

        assert (await tool.restore("--at-index", str(before), "--topic", "deleted", "--yes"))[0] == 0
        await wire.produce("open", batch(b"y"))
        await upload_all(node)  # with its commit the node hears of it
        await opened(node, "deleted")
        assert await wire.fetch_all("deleted") == [b"%d" % number for number in range(10)]
        assert (await wire.produce("deleted", batch(b"new"))).base_offset == 10 + SLACK
        assert await wire.fetch_all("open") == [b"x", b"y"]
        await upload_all(node)
        assert await tool.is_sound()
    async with (
        start_node(object_store_uri=tool.uri) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await loaded(node)
        assert await wire.fetch_values("deleted", 10) == [b"new"]


async def test_a_crashed_node_is_to_be_started_and_stopped_first(
    start_node: StartNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its WAL has what no object holds."""
    async with start_node(upload_interval_ms=600_000) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        await wire.produce("t", batch(b"before"))
        await upload_all(node)
        before = index_of(node)
        await wire.produce("t", batch(b"in the WAL only"))
        for place in ("objects", "wal"):
            await asyncio.to_thread(shutil.copytree, tmp_path / place, tmp_path / "crashed" / place)
    tool = Tool(uri=(tmp_path / "crashed/objects").as_uri(), capsys=capsys)
    places = {
        "wal_uri": f"{(tmp_path / 'crashed/wal').as_uri()}?capacity=16MiB",
        "object_store_uri": tool.uri,
    }
    assert "partitions are open: t-0" in await tool.refusal("--at-index", str(before - 2))
    async with start_node(**places):
        pass
    status, rows = await tool.restore("--at-index", str(before), "--yes")
    assert (status, partitions(rows)) == (0, {"t-0": ([], [[1, 2]])})
    async with start_node(**places) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await loaded(node)
        assert await wire.fetch_all("t") == [b"before"], "neither is the WAL's content back"
        assert (await wire.produce("t", batch(b"new"))).base_offset == 2
    assert await tool.is_sound()


async def test_a_crash_with_the_tail_of_before_the_deletion_still_in_the_wal(
    start_node: StartNode, tmp_path: Path, tool: Tool
) -> None:
    async with start_node(upload_interval_ms=600_000) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        await wire.produce("t", batch(b"before"))
        await upload_all(node)
        before = index_of(node)
        await wire.produce("t", batch(b"acknowledged, never uploaded", b"nor this"))
        await delete_topic(node, "t")
        assert (await tool.restore("--at-index", str(before), "--topic", "t", "--yes"))[0] == 0
        await node.running.broker.controller.refresh()
        await opened(node, "t")
        assert (await wire.produce("t", batch(b"new"))).base_offset == 1 + SLACK
        for place in ("objects", "wal"):
            await asyncio.to_thread(shutil.copytree, tmp_path / place, tmp_path / "crashed" / place)
        assert await wire.fetch_all("t") == [b"before", b"new"]
        await upload_all(node)
        assert await wire.fetch_all("t") == [b"before", b"new"]
        assert (await wire.produce("t", batch(b"next"))).base_offset == 2 + SLACK
    assert await tool.is_sound()
    places = {
        "wal_uri": f"{(tmp_path / 'crashed/wal').as_uri()}?capacity=16MiB",
        "object_store_uri": (tmp_path / "crashed/objects").as_uri(),
    }
    async with start_node(**places) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await loaded(node)
        assert await wire.fetch_all("t") == [b"before", b"new"]
        assert (await wire.produce("t", batch(b"next"))).base_offset == 2 + SLACK
        await upload_all(node)
    assert await Tool(uri=places["object_store_uri"], capsys=tool.capsys).is_sound()


class HeldUp:
    """A store whose data objects are put when the test says so."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self.go_on = asyncio.Event()
        self.waiting = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def put(self, key: str, parts: Sequence[Buffer], **options: Any) -> str:
        if key.startswith("data/"):
            self.waiting += 1
            await self.go_on.wait()
        return await self._inner.put(key, parts, **options)


@pytest.mark.parametrize("parallelism", [1, 2])
async def test_uploads_of_before_the_deletion_that_come_late_do_no_harm(
    start_node: StartNode, tool: Tool, parallelism: int
) -> None:
    """Of two blocks one is being put, and one waits for its turn (or both are being put); then the topic is another one."""
    store: HeldUp | None = None

    def wrap(inner: ObjectStore) -> Any:
        nonlocal store
        store = HeldUp(inner)
        return store

    async with (
        start_node(wrap_store=wrap, upload_interval_ms=600_000, upload_parallelism=parallelism) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        assert store is not None
        store.go_on.set()
        await wire.create_topic("t")
        await wire.produce("t", batch(b"before"))
        await upload_all(node)
        before = index_of(node)
        store.go_on.clear()
        store.waiting = 0
        for value in (b"late", b"later"):
            await wire.produce("t", batch(value))
            node.running.storage.seal()
        held_up = store
        await eventually(lambda: held_up.waiting == parallelism, "uploads")
        await delete_topic(node, "t")
        assert (await tool.restore("--at-index", str(before), "--topic", "t", "--yes"))[0] == 0
        await node.running.broker.controller.refresh()
        await opened(node, "t")
        assert (await wire.produce("t", batch(b"new"))).base_offset == 1 + SLACK
        store.go_on.set()
        await upload_all(node)
        assert await wire.fetch_all("t") == [b"before", b"new"]
        assert (await wire.produce("t", batch(b"next"))).base_offset == 2 + SLACK
    assert await tool.is_sound()


async def test_a_point_by_its_time(start_node: StartNode, tool: Tool) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        before = index_of(node)
        await asyncio.sleep(0.05)
        await delete_topic(node, "t")
        deleted = index_of(node)
    status, (window, *events) = await tool.restore()
    assert (status, window["first_index"]) == (0, 0)
    assert [(event["index"], event["event"]) for event in events] == [(deleted, "topic t was deleted")]
    at_ms = events[0]["at_ms"]
    assert window["first_at_ms"] <= at_ms <= window["last_at_ms"]
    status, rows = await tool.restore("--at", when(at_ms - 1))
    assert (rows[0]["index"], rows[0]["undone_index"]) == (before, deleted)
    assert rows[1]["change"] == "comes back"
    status, rows = await tool.restore("--at", when(at_ms + 60_000))
    assert rows[0]["index"] == window["last_index"]
    assert "the history that is kept begins with entry 0" in await tool.refusal("--at", "2001-01-01T00:00:00Z")
    assert "goes from entry 0 to" in await tool.refusal("--at-index", "12345")


def test_times_say_their_zone() -> None:
    assert moment_ms("2026-03-01T12:00:00Z") == moment_ms("2026-03-01T14:00:00.000+02:00") == 1_772_366_400_000
    with pytest.raises(argparse.ArgumentTypeError, match="says no time zone"):
        moment_ms("2026-03-01T12:00:00")
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time"):
        moment_ms("yesterday")


async def test_what_was_deleted_from_the_store_does_not_come_back(start_node: StartNode, tool: Tool) -> None:
    without_window = {"metadata_restore_window_ms": 0, "log_segment_delete_delay_ms": 1, "upload_interval_ms": 50}
    async with start_node(**without_window) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        await wire.produce("t", batch(b"x"))
        await upload_all(node)
        before = index_of(node)
        await delete_topic(node, "t")
        tables = node.running.broker.controller.image.state.tables
        await eventually(lambda: not tables.unreferenced and not tables.expired, "the collector")
    status, rows = await tool.restore("--at-index", str(before))
    assert status == 2
    assert [row["kind"] for row in rows if row["kind"] == "missing"] == ["missing"]
    assert "1 objects that held records then are deleted by now" in await tool.refusal("--at-index", str(before))


async def test_objects_are_looked_for_before(start_node: StartNode, tool: Tool, tmp_path: Path) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        await wire.produce("t", batch(b"x"))
        await upload_all(node)
        before = index_of(node)
        await delete_topic(node, "t")
    for path in (tmp_path / "objects/data").rglob("*"):
        if path.is_file():
            path.unlink()
    assert "1 objects that held records then are not in the store" in await tool.refusal("--at-index", str(before))
