"""A broker that is taken for dead though it lives: another one recovers its WAL, and it acknowledges nothing more (I1, I3, I4, I11)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.__main__ import main
from broker.inspect.wal import open_wal_disk
from broker.node import Node
from broker.salvage import streams_on
from controller.lost_wals import lost_wals
from controller.tables import NodeStatus
from protocol.errors import ErrorCode
from protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from s3stream.errors import NodeFenced, TakenForDead
from s3stream.metadata import StreamId
from s3stream.objectstore import Unavailable
from s3stream.storage import Storage
from s3stream.stream import Stream
from tests.broker.conftest import StartNode
from tests.broker.scraping import scrape
from tests.broker.wire import Wire, batch, eventually
from tests.crash.process import free_port
from wal.frame import FRAME_HEADER_SIZE_BYTES
from wal.header import RING_START_BYTES
from wal.survey import WalSurvey, frames_of

PARTITIONS = 4

IN_BUCKET = pytest.mark.parametrize("in_bucket", [False, True], ids=["on a disk", "in a bucket"])


@pytest.fixture
def start(start_node: StartNode, tmp_path: Path) -> Any:
    """Start one of several nodes, each with a WAL of its own."""

    @asynccontextmanager
    async def started(node_id: int, *, in_bucket: bool = False, **changes: Any) -> AsyncIterator[Node]:
        wal = (
            f"objects+{(tmp_path / 'bucket').as_uri()}?capacity=16MiB&batch_interval_ms=0"
            if in_bucket
            else f"{(tmp_path / f'wal{node_id}').as_uri()}?capacity=16MiB"
        )
        settings = {
            "node_id": node_id,
            "controller_listeners": f"CONTROLLER://127.0.0.1:{free_port()}",
            "wal_uri": wal,
            "upload_interval_ms": 600_000,
            "shutdown_timeout_ms": 100,
            **changes,
        }
        async with start_node(**settings) as node:
            yield node

    return started


async def take_for_dead(node_id: int, told: Node) -> None:
    """As the leader does when it hears nothing of a node."""
    controller = told.running.broker.controller
    node = controller.image.node(node_id)
    assert node is not None
    # At once: the leader hears of it, and would trust it again.
    while not all(
        await asyncio.gather(
            controller.suspect_node(node_id, node.node_epoch), controller.declare_dead(node_id, node.node_epoch)
        )
    ):
        await asyncio.sleep(0.01)


def crash(node: Node) -> None:
    """It does nothing more, and leaves its WAL as it is."""
    node.running.storage.supersede(NodeFenced("the machine burns"))


async def written(one: Node, two: Node, to_two: Wire) -> list[int]:
    """A topic with a record in each partition of node 1, in its WAL only; which those are."""
    await to_two.create_topic("t", PARTITIONS)
    lost = [index for index, leader in (await led(to_two, "t")).items() if leader == 1]
    assert 0 < len(lost) < PARTITIONS
    await eventually(lambda: open_on(one, "t") == lost, "they are open")
    async with await Wire.connect(one.bootstrap_servers) as to_one:
        for index in lost:
            assert (await to_one.produce("t", batch(b"0"), partition=index)).base_offset == 0
    return lost


class WithoutData:
    """An object store that takes everything but records, for as long as it is told to."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.refuses = True
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def put(self, key: str, parts: Any, **options: Any) -> Any:
        if self.refuses and "data/" in key:
            self.refused += 1
            raise Unavailable("not now")
        return await self._inner.put(key, parts, **options)


async def inspected(directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `tidelog inspect metadata` says."""
    capsys.readouterr()
    arguments = ["--log-level", "error", "inspect", "metadata", "--bucket", (directory / "objects").as_uri()]
    assert await asyncio.to_thread(main, arguments) == 0
    return capsys.readouterr().out


async def eventually_shows(node: Node, name: str, value: float, **labels: str) -> None:
    """A page of metrics is kept for a moment."""
    async with asyncio.timeout(30):
        while (await scrape(node))(name, **labels) != value:
            await asyncio.sleep(0.1)


def open_on(node: Node, topic: str) -> list[int]:
    """The partitions of a topic that a node serves."""
    found = node.running.broker.topics.by_name[topic].partitions
    return [index for index, partition in enumerate(found) if partition is not None and partition.loaded]


async def led(wire: Wire, topic: str) -> dict[int, int]:
    """Who leads each partition, as a client is told."""
    response = await wire.call("Metadata", 12, MetadataRequest(topics=[MetadataRequestTopic(name=topic)]))
    return {each.partition_index: each.leader_id for each in response.topics[0].partitions}


@IN_BUCKET
async def test_its_partitions_go_on_with_all_that_was_acknowledged(start: Any, in_bucket: bool) -> None:
    async with (
        start(1, in_bucket=in_bucket) as one,
        start(2, in_bucket=in_bucket) as two,
        await Wire.connect(one.bootstrap_servers) as to_one,
        await Wire.connect(two.bootstrap_servers) as to_two,
    ):
        await to_two.create_topic("t", PARTITIONS)
        before = await led(to_two, "t")
        lost = [index for index, leader in before.items() if leader == 1]
        await eventually(lambda: open_on(one, "t") == lost, "they are open")
        for index in lost:
            for number in range(3):
                produced = await to_one.produce(
                    "t", batch(b"%d" % number, producer_id=7, producer_epoch=0, base_sequence=number), partition=index
                )
                assert produced.base_offset == number

        await take_for_dead(1, two)
        await eventually(lambda: open_on(two, "t") == list(range(PARTITIONS)), "the other one has all of them")

        assert set((await led(to_two, "t")).values()) == {2}
        for index in lost:
            assert await to_two.fetch_all("t", partition=index) == [b"0", b"1", b"2"]
            again = batch(b"2", producer_id=7, producer_epoch=0, base_sequence=2)
            assert (await to_two.produce("t", again, partition=index)).base_offset == 2, "I11: it was there already"
            more = batch(b"3", producer_id=7, producer_epoch=0, base_sequence=3)
            assert (await to_two.produce("t", more, partition=index)).base_offset == 3
        assert streams_on(two.running.broker.controller.image, one.running.wal_id) == {}

        # It does not know yet, or does: it acknowledges nothing.
        late = asyncio.ensure_future(to_one.produce("t", batch(b"late"), partition=lost[0]))
        await asyncio.wait([late], timeout=2)
        if late.done() and late.exception() is None:
            assert late.result().error_code in (ErrorCode.NOT_LEADER_OR_FOLLOWER, ErrorCode.KAFKA_STORAGE_ERROR)
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        assert await to_two.fetch_all("t", partition=lost[0]) == [b"0", b"1", b"2", b"3"]


@IN_BUCKET
async def test_it_comes_back_with_the_wal_that_it_had(start: Any, in_bucket: bool) -> None:
    """What was recovered elsewhere is not recovered once more, and what it appends from now on is its own."""
    async with start(2, in_bucket=in_bucket) as two, await Wire.connect(two.bootstrap_servers) as to_two:
        await two.running.broker.controller.run_for_office(await two.running.broker.controller.read_leader())
        async with start(1, in_bucket=in_bucket) as one:
            lost = await written(one, two, to_two)
            wal_id = one.running.wal_id
            crash(one)
        await take_for_dead(1, two)
        await eventually(lambda: open_on(two, "t") == list(range(PARTITIONS)), "the other one has all of them")
        async with start(1, in_bucket=in_bucket) as one, await Wire.connect(one.bootstrap_servers) as to_one:
            assert one.running.wal_id == wal_id
            assert two.running.broker.controller.image.node_status(1) is NodeStatus.ALIVE
            streams = {
                state.index: state.stream_id
                for topic in two.running.broker.controller.image.topics()
                for state in topic.partitions
                if topic.name == "t"
            }
            await two.running.broker.controller.reassign({streams[index]: 1 for index in lost})
            await eventually(lambda: set(lost) <= set(open_on(one, "t")), "they are back")
            for index in lost:
                assert (await to_one.produce("t", batch(b"1"), partition=index)).base_offset == 1
                assert await to_one.fetch_all("t", partition=index) == [b"0", b"1"]
            crash(one)
        async with start(1, in_bucket=in_bucket) as one, await Wire.connect(one.bootstrap_servers) as to_one:
            for index in lost:  # of its own, this time: nobody took it for dead
                assert await to_one.fetch_all("t", partition=index) == [b"0", b"1"]


async def test_a_wal_that_cannot_be_reached_leaves_its_partitions_offline_until_it_can(
    start: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    volumes = tmp_path / "volumes"
    async with (
        start(2, wal_recovery_directories=str(volumes), metrics_listeners="HTTP://127.0.0.1:0") as two,
        await Wire.connect(two.bootstrap_servers) as to_two,
    ):
        await two.running.broker.controller.run_for_office(await two.running.broker.controller.read_leader())
        async with start(1) as one:
            lost = await written(one, two, to_two)
            wal_id = one.running.wal_id
            crash(one)
        (tmp_path / "wal1").rename(tmp_path / "unplugged")
        await take_for_dead(1, two)
        failover = two.running.failover
        await eventually(lambda: failover.offline_partitions == len(lost), "it is noticed")
        assert "partitions of a dead node are offline" in caplog.text
        assert f"tidelog wal abandon {wal_id}" in caplog.text
        leaders = await led(to_two, "t")
        assert {index for index, leader in leaders.items() if leader == -1} == set(lost)
        assert (await scrape(two))("tidelog_offline_partitions", reason="dead_node") == len(lost)
        told = await inspected(tmp_path, capsys)
        assert f"WAL {wal_id} of node 1, which is dead: {len(lost)} partitions wait for it; NOBODY recovers it" in told
        assert f"tidelog wal abandon {wal_id}" in told
        assert "what node 1 had acknowledged and not uploaded is not known" in told, (
            "it was not the leader who suspected it"
        )
        assert math.isnan((await scrape(two))("tidelog_lost_wal_reported_records", node="1", wal_id=wal_id))

        volumes.mkdir()
        (tmp_path / "unplugged").rename(volumes / "of node 1")
        await eventually(lambda: open_on(two, "t") == list(range(PARTITIONS)), "its volume was attached")
        assert failover.offline_partitions == 0
        await eventually_shows(two, "tidelog_offline_partitions", 0, reason="dead_node")
        page = await scrape(two)
        assert (page("tidelog_recovered_wals_total"), page("tidelog_recovered_partitions_total")) == (1, len(lost))
        for index in lost:
            assert await to_two.fetch_all("t", partition=index) == [b"0"]


async def test_another_goes_on_where_a_recoverer_died(start: Any) -> None:
    stores: list[WithoutData] = []

    def stuck(inner: Any) -> WithoutData:
        stores.append(WithoutData(inner))
        return stores[-1]

    async with start(2, wrap_store=stuck) as two, await Wire.connect(two.bootstrap_servers) as to_two:
        await two.running.broker.controller.until_in_office()
        async with start(1) as one:
            lost = await written(one, two, to_two)
            crash(one)
        await take_for_dead(1, two)
        await eventually(lambda: any(store.refused for store in stores), "node 2 is at it")
        async with start(3) as three, await Wire.connect(three.bootstrap_servers) as to_three:
            controller = three.running.broker.controller
            assert {wal.recoverer for wal in lost_wals(controller.image.state.tables)} == {2}
            crash(two)
            await take_for_dead(2, three)
            await eventually(lambda: open_on(three, "t") == list(range(PARTITIONS)), "node 3 has all of them")
            for index in lost:
                assert await to_three.fetch_all("t", partition=index) == [b"0"]


async def test_a_broker_that_is_taken_for_dead_while_it_starts_may_begin_anew(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still between its registration and the recovery of its WAL. One that another process has replaced is told something else."""
    recover = Storage.start

    def overtaken_by(others: Callable[[], Awaitable[object]]) -> None:
        async def late(storage: Storage, stream_ids: Sequence[StreamId]) -> Mapping[StreamId, Stream]:
            monkeypatch.setattr(Storage, "start", recover)
            await others()
            return await recover(storage, stream_ids)

        monkeypatch.setattr(Storage, "start", late)

    async with start(2) as two, await Wire.connect(two.bootstrap_servers) as to_two:
        await two.running.broker.controller.until_in_office()
        async with start(1) as one:
            lost = await written(one, two, to_two)
            wal_id = one.running.wal_id
            crash(one)
        overtaken_by(lambda: two.running.broker.controller.register_node(1, wal_id, wal_epoch=1))
        with pytest.raises(NodeFenced, match="was registered again") as raised:
            async with start(1):
                pass
        assert not isinstance(raised.value, TakenForDead), "stop one of the two"
        overtaken_by(lambda: take_for_dead(1, two))
        with pytest.raises(TakenForDead, match="is taken for dead"):
            async with start(1):
                pass
        async with start(1) as one, await Wire.connect(one.bootstrap_servers) as to_one:
            everywhere = {1: (one, to_one), 2: (two, to_two)}
            for index in lost:
                await eventually(
                    lambda its=index: any(its in open_on(node, "t") for node, _ in everywhere.values()), ""
                )
                (wire,) = [wire for node, wire in everywhere.values() if index in open_on(node, "t")]
                assert await wire.fetch_all("t", partition=index) == [b"0"]


async def test_a_recoverer_that_gets_nowhere_leaves_it_to_another(
    start: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It lives, and the objects that it puts are refused, for it alone."""
    monkeypatch.setattr("broker.failover.STALLED_S", 1.0)
    monkeypatch.setattr("broker.failover.GIVE_BACK_AFTER_S", 1.0)
    stores: list[WithoutData] = []

    def stuck(inner: Any) -> WithoutData:
        stores.append(WithoutData(inner))
        return stores[-1]

    async with start(2, wrap_store=stuck) as two, await Wire.connect(two.bootstrap_servers) as to_two:
        await two.running.broker.controller.until_in_office()
        async with start(1) as one:
            lost = await written(one, two, to_two)
            crash(one)
        await take_for_dead(1, two)
        await eventually(lambda: any(store.refused for store in stores), "node 2 is at it")
        await asyncio.sleep(3.0)
        tables = two.running.broker.controller.image.state.tables
        assert [wal.recoverer for wal in lost_wals(tables)] == [2], "as long as there is nobody else"
        async with start(3) as three:
            await eventually(lambda: three.running.failover.recovered_wals == 1, "node 3 has recovered it")
            assert "is left to others, this node fails with it" in caplog.text
            assert two.running.failover.recovered_wals == 0
            for store in stores:
                store.refuses = False
            await eventually(lambda: set(lost) <= set(open_on(two, "t")), "they go where they were to go")
            for index in lost:
                assert await to_two.fetch_all("t", partition=index) == [b"0"]


async def test_a_recoverer_whose_volume_was_moved_to_another_leaves_it_to_that_one(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has the claim, and does not find the WAL any more."""
    monkeypatch.setattr("broker.failover.STALLED_S", 1.0)
    monkeypatch.setattr("broker.failover.GIVE_BACK_AFTER_S", 2.0)
    monkeypatch.setattr("broker.failover.RETRY_S", 0.5)
    store: list[WithoutData] = []
    volumes = {node_id: tmp_path / f"volumes{node_id}" for node_id in (2, 3)}
    for directory in volumes.values():
        directory.mkdir()

    def stuck(inner: Any) -> WithoutData:
        store.append(WithoutData(inner))
        return store[-1]

    async with (
        start(2, wal_recovery_directories=str(volumes[2]), wrap_store=stuck) as two,
        await Wire.connect(two.bootstrap_servers) as to_two,
        start(3, wal_recovery_directories=str(volumes[3])) as three,
    ):
        await two.running.broker.controller.until_in_office()
        async with start(1) as one:
            lost = await written(one, two, to_two)
            crash(one)
        (tmp_path / "wal1").rename(volumes[2] / "of node 1")
        await take_for_dead(1, two)
        await eventually(lambda: any(each.refused for each in store), "node 2 is at it")
        (volumes[2] / "of node 1").rename(volumes[3] / "of node 1")
        await eventually(lambda: three.running.failover.recovered_wals == 1, "node 3 has recovered it")
        assert "is left to others, this node fails with it" in caplog.text
        for each in store:
            each.refuses = False
        everywhere = [two, three]
        await eventually(
            lambda: set(lost) <= {index for node in everywhere for index in open_on(node, "t")}, "they are open"
        )
        for index in lost:
            node = next(node for node in everywhere if index in open_on(node, "t"))
            async with await Wire.connect(node.bootstrap_servers) as wire:
                assert await wire.fetch_all("t", partition=index) == [b"0"]


async def test_a_node_that_comes_back_takes_over_from_its_recoverer(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """I4. What the other would commit afterwards is refused, and it gives up without a fuss."""
    stores: list[WithoutData] = []

    def stuck(inner: Any) -> WithoutData:
        stores.append(WithoutData(inner))
        return stores[-1]

    async with start(2, wrap_store=stuck) as two, await Wire.connect(two.bootstrap_servers) as to_two:
        controller = two.running.broker.controller
        await controller.until_in_office()
        async with start(1) as one:
            lost = await written(one, two, to_two)
            crash(one)
        await take_for_dead(1, two)
        await eventually(lambda: any(store.refused for store in stores), "node 2 is at it")
        async with start(1) as one, await Wire.connect(one.bootstrap_servers) as to_one:
            await eventually(lambda: set(lost) <= set(open_on(one, "t")), "it has them back")
            for store in stores:
                store.refuses = False
            for index in lost:
                assert await to_one.fetch_all("t", partition=index) == [b"0"]
                assert (await to_one.produce("t", batch(b"1"), partition=index)).base_offset == 1
            await eventually(lambda: not two.running.failover.recovering, "node 2 has given up")
            assert two.running.failover.recovered_wals == 0
            assert "of a dead node" not in caplog.text
            for index in lost:
                assert await to_one.fetch_all("t", partition=index) == [b"0", b"1"]


def overwrite(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(b"damage")


async def test_damage_costs_the_partitions_that_it_concerns(start: Any, tmp_path: Path) -> None:
    async with start(2) as two, await Wire.connect(two.bootstrap_servers) as to_two:
        await two.running.broker.controller.until_in_office()
        async with start(1) as one, await Wire.connect(one.bootstrap_servers) as to_one:
            lost = await written(one, two, to_two)
            for index in lost:
                assert (await to_one.produce("t", batch(b"1"), partition=index)).base_offset == 1
            crash(one)
        async with open_wal_disk(tmp_path / "wal1") as disk:
            frames = [frame.offset async for run in WalSurvey(disk).runs() for frame in frames_of(run)]
        overwrite(tmp_path / "wal1" / "wal", RING_START_BYTES + frames[0] + FRAME_HEADER_SIZE_BYTES + 20)
        await take_for_dead(1, two)
        sound = sorted(set(range(PARTITIONS)) - {lost[0]})
        await eventually(lambda: open_on(two, "t") == sound, "the others go on")
        for index in lost[1:]:
            assert await to_two.fetch_all("t", partition=index) == [b"0", b"1"]
        assert (await led(to_two, "t"))[lost[0]] == -1
        (problem,) = two.running.failover.problems().values()
        assert "it is damaged" in problem
        assert "offsets 0 to 0 are missing" in problem
