"""Lag of consumer groups, in records and in seconds: of recent records, of old ones, and of very many groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from broker import group_lag
from broker.group_lag import GroupLag, Lag
from broker.groups.group import Group
from broker.groups.records import OffsetValue
from broker.node import Node
from protocol.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from tests.broker.conftest import StartNode
from tests.broker.scraping import scrape
from tests.broker.wire import Wire, batch, eventually

NOW_MS = 1_000_000_000


async def commit(node: Node, wire: Wire, group: str, topic: str, offset: int, partition: int = 0) -> None:
    """Commit as a consumer without a group membership does."""
    await eventually(lambda: not node.running.broker.groups.is_loading, "the coordinator")
    request = OffsetCommitRequest(
        group_id=group,
        topics=[
            OffsetCommitRequestTopic(
                name=topic,
                partitions=[OffsetCommitRequestPartition(partition_index=partition, committed_offset=offset)],
            )
        ],
    )
    for _ in range(100):
        (answer,) = (await wire.call("OffsetCommit", 8, request)).topics
        if answer.partitions[0].error_code not in (14, 15, 16):
            break
        await eventually(lambda: not node.running.broker.groups.is_loading, "the coordinator")
    assert answer.partitions[0].error_code == 0


async def test_lag_of_recent_records(start_node: StartNode) -> None:
    async with (
        start_node(metrics_listeners="HTTP://127.0.0.1:0", now_ms=lambda: NOW_MS) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t", partitions=2)
        for age_s in (100, 60, 20):
            await wire.produce("t", batch(b"a", b"b", timestamp_ms=NOW_MS - age_s * 1000))
        await find_coordinator(wire)
        await commit(node, wire, "slow", "t", 2)
        await commit(node, wire, "slow", "t", 0, partition=1)
        await commit(node, wire, "quick", "t", 6)
        await node.running.group_lag.look()
        assert node.running.group_lag.lags == {("slow", "t"): Lag(4, 60.0), ("quick", "t"): Lag(0, 0.0)}

        page = await scrape(node)
        assert page("tidelog_consumer_lag_records", group="slow", topic="t") == 4
        assert page("tidelog_consumer_lag_seconds", group="slow", topic="t") == 60
        assert page("tidelog_consumer_groups", state="Empty") == 2


async def test_lag_of_records_that_only_objects_hold(start_node: StartNode) -> None:
    async with start_node(now_ms=lambda: NOW_MS) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        for age_s in (300, 200, 100):  # three objects
            await wire.produce("t", *[batch(b"x", timestamp_ms=NOW_MS - age_s * 1000 + at) for at in range(1)])
            await wire.produce("t", batch(*[b"y"] * 9, timestamp_ms=NOW_MS - age_s * 1000))
            stream = only_stream(node)
            await node.running.storage.flush(stream.stream_id, stream.confirmed_offset)
        stream = only_stream(node)
    async with start_node(now_ms=lambda: NOW_MS) as node:
        stream = only_stream(node)
        assert stream.tail.base_offset is None, "the log cache is empty"
        ages_s = [(NOW_MS - stream.estimated_timestamp_ms(offset)) / 1000 for offset in (0, 9, 10, 15, 20, 25, 29)]
        # The first range has none before it: not older than that is all that is known.
        assert ages_s[:2] == [300, 300]
        assert ages_s == sorted(ages_s, reverse=True)
        assert ages_s[2:5] == [300, 250, 200]
        assert 100 <= ages_s[6] < ages_s[5] < 200
        assert stream.estimated_timestamp_ms(30) == -1


def only_stream(node: Node) -> Any:
    (partition,) = [one for one in node.running.broker.partitions if one.topic_name == "t"]
    return partition.stream


async def find_coordinator(wire: Wire) -> None:
    """The topic of offsets comes into being when somebody asks for a coordinator."""
    from protocol.messages.find_coordinator import FindCoordinatorRequest

    for _ in range(200):
        answer = await wire.call("FindCoordinator", 2, FindCoordinatorRequest(key="slow"))
        if answer.error_code == 0:
            return
        assert answer.error_code in (14, 15)
    raise AssertionError("no coordinator")


@dataclass
class FakeStream:
    stamped_ms: int

    def estimated_timestamp_ms(self, offset: int) -> int:
        return self.stamped_ms


@dataclass
class FakePartition:
    high_watermark: int = 100
    log_start_offset: int = 10
    stream: FakeStream = field(default_factory=lambda: FakeStream(NOW_MS - 5000))


def lag_of(partitions: dict[str, list[FakePartition | None]], groups: list[Group], max_pairs: int = 10) -> GroupLag:
    topics: Any = SimpleNamespace(
        by_name={name: SimpleNamespace(partitions=found) for name, found in partitions.items()}
    )
    return GroupLag(groups=groups, topics=topics, now_ms=lambda: NOW_MS, clock=lambda: 0.0, max_pairs=max_pairs)


def group(name: str, *offsets: tuple[str, int, int]) -> Group:
    made = Group(name, NOW_MS)
    for topic, partition, offset in offsets:
        made.offsets.put(topic, partition, OffsetValue(offset))
    return made


@pytest.mark.parametrize(
    ("committed", "wanted"),
    [(99, Lag(1, 5.0)), (100, Lag(0, 0.0)), (120, Lag(0, 0.0)), (3, Lag(90, 5.0))],
    ids=["behind", "at the end", "beyond it, after an abandon", "before the log start"],
)
async def test_one_partition(committed: int, wanted: Lag) -> None:
    lag = lag_of({"t": [FakePartition()]}, [group("g", ("t", 0, committed))])
    await lag.look()
    assert lag.lags == {("g", "t"): wanted}


async def test_what_is_not_here_has_no_lag() -> None:
    lag = lag_of({"t": [None]}, [group("g", ("t", 0, 5), ("t", 1, 5), ("gone", 0, 5))])
    await lag.look()
    assert lag.lags == {}


async def test_records_without_timestamps_have_no_age() -> None:
    lag = lag_of({"t": [FakePartition(stream=FakeStream(-1))]}, [group("g", ("t", 0, 50))])
    await lag.look()
    assert lag.lags == {("g", "t"): Lag(50, 0.0)}


async def test_many_groups_share_a_row_and_others_run_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_lag, "LOOKS_AT_A_TIME", 2)
    groups = [group(f"g{number}", ("t", 0, 100 - number)) for number in range(6)]
    lag = lag_of({"t": [FakePartition()]}, groups, max_pairs=2)
    await lag.look()
    assert lag.lags == {("g0", "t"): Lag(0, 0.0), ("g1", "t"): Lag(1, 5.0), ("(other)", "(other)"): Lag(14, 5.0)}


async def test_long_names_are_cut_and_do_not_come_twice() -> None:
    groups = [group("x" * 1000 + end, ("t", 0, 99)) for end in "ab"]
    lag = lag_of({"t": [FakePartition()]}, groups)
    await lag.look()
    assert lag.lags == {("x" * 249, "t"): Lag(2, 5.0)}
