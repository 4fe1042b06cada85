"""Consumers that are behind, as they and everybody else see it: what they cost the store, and whom they do not hold up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from broker.testing import TidelogServer
from protocol.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from s3stream.instrumented import InstrumentedObjectStore
from s3stream.objectstore import ObjectStore
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch, eventually, records_in

COUNT = 300
VALUE_BYTES = 50_000
"""15 MB in all: of the 24 MB that the tests' broker has for such reads."""


@contextmanager
def filled(directory: Path, **settings: Any) -> Iterator[TidelogServer]:
    """A broker whose topic `history` is in objects alone."""
    tidelog = TidelogServer(directory, upload_size_bytes=2 << 20, **settings)
    tidelog.start()
    producer = ck.Producer({"bootstrap.servers": tidelog.bootstrap_servers, "linger.ms": 0})
    for n in range(COUNT):
        producer.produce("history", b"%08d" % n + bytes([n % 251]) * VALUE_BYTES)
        producer.poll(0)
    assert producer.flush(60) == 0
    tidelog.restart()
    yield tidelog
    tidelog.stop()


class Group:
    """A consumer group of one, in a thread of its own: reads the topic from its start."""

    def __init__(self, tidelog: TidelogServer, name: str) -> None:
        self.numbers: list[int] = []
        self.some = threading.Event()
        """Set when it has read a few."""
        self._consumer = ck.Consumer(
            {
                "bootstrap.servers": tidelog.bootstrap_servers,
                "group.id": name,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "fetch.max.bytes": 1 << 20,
                "max.partition.fetch.bytes": 1 << 20,
                "queued.max.messages.kbytes": 2048,
            }
        )
        self._consumer.subscribe(["history"])
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while len(self.numbers) < COUNT:
            message = self._consumer.poll(30)
            if message is None or message.error() is not None:
                break
            self.numbers.append(int(message.value()[:8]))
            if len(self.numbers) == 40:
                self.some.set()
        self.some.set()
        self._consumer.close()

    def join(self) -> None:
        self._thread.join()
        assert self.numbers == list(range(COUNT))


def block_gets(tidelog: TidelogServer) -> tuple[int, int]:
    """GETs of blocks, and their bytes, since the broker's start."""
    store = tidelog.object_store
    return store.requests["get_range"], store.transferred_bytes["get_range"]


@pytest.mark.parametrize("staggered", [False, True], ids=["together", "staggered"])
def test_five_groups_at_the_same_place_cost_one_set_of_gets(tmp_path: Path, staggered: bool) -> None:
    with filled(tmp_path) as tidelog:
        before = block_gets(tidelog)
        groups = []
        for number in range(5):
            groups.append(Group(tidelog, f"group-{number}"))
            if staggered:
                groups[-1].some.wait()  # the next one starts some two megabytes behind
        for group in groups:
            group.join()
        gets, got_bytes = (after - start for after, start in zip(block_gets(tidelog), before, strict=True))
        size = COUNT * VALUE_BYTES
        assert size <= got_bytes < size * 1.05
        assert gets < got_bytes / (400 << 10), "one for each block, or fewer: neighbours come together"
        reader = tidelog.node.running.storage.reader
        assert reader.merged_blocks > 0
        assert reader.cached_blocks > 3 * reader.missed_blocks


def test_the_rate_of_catch_up_is_a_setting_that_an_admin_client_changes(tmp_path: Path) -> None:
    name = "remote.log.manager.fetch.max.bytes.per.second"
    with filled(tmp_path) as tidelog:
        reader = tidelog.node.running.storage.reader
        assert reader.budget.rate_bytes_per_s is None

        def alter(operation: AlterConfigOpType, value: str | None) -> None:
            admin = AdminClient({"bootstrap.servers": tidelog.bootstrap_servers})
            entry = ConfigEntry(name, value, incremental_operation=operation)
            resource = ConfigResource(ResourceType.BROKER, "1", incremental_configs=[entry])
            admin.incremental_alter_configs([resource])[resource].result(30)

        alter(AlterConfigOpType.SET, str(10_000_000))
        assert reader.budget.rate_bytes_per_s == 10_000_000
        Group(tidelog, "throttled").join()  # slowly, and without an error
        assert reader.budget.throttled_s > 0
        alter(AlterConfigOpType.DELETE, None)
        assert reader.budget.rate_bytes_per_s is None


class HangingGets(InstrumentedObjectStore):
    """A store that does not answer reads of blocks until it is told to."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.answers = asyncio.Event()
        self.answers.set()

    @classmethod
    def into(cls, made: list[HangingGets], inner: ObjectStore) -> HangingGets:
        """One around a store, for a test that wants to get hold of it."""
        made.append(cls(inner))
        return made[-1]

    async def get_range_into(self, key: str, start: int, parts: Sequence[memoryview]) -> int:
        await self.answers.wait()
        return await super().get_range_into(key, start, parts)


def both(cold: int, hot: int, **changes: Any) -> FetchRequest:
    partitions = [
        FetchPartition(partition=0, fetch_offset=cold, partition_max_bytes=1 << 20),
        FetchPartition(partition=1, fetch_offset=hot, partition_max_bytes=1 << 20),
    ]
    values = {"max_wait_ms": 10_000, "min_bytes": 1, "max_bytes": 1 << 20, **changes}
    return FetchRequest(topics=[FetchTopic(topic="t", partitions=partitions)], **values)


async def test_nobody_at_the_tail_waits_for_a_store_that_does_not_answer_readers(start_node: StartNode) -> None:
    stores: list[HangingGets] = []

    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t", partitions=2)
        await wire.produce("t", batch(b"cold"), partition=0)
        await wire.produce("t", batch(b"hot"), partition=1)
    async with (
        start_node(wrap_store=partial(HangingGets.into, stores), remote_fetch_max_wait_ms=60_000) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
        await Wire.connect(node.bootstrap_servers) as behind,
    ):
        stores[0].answers.clear()
        behind.send("Fetch", 12, both(cold=0, hot=1))
        await eventually(lambda: node.running.storage.reader.budget.requests_under_way == 1, "a GET that hangs")
        # Producers and readers at the tail have their answers, of the same partition too.
        for number in range(20):
            await wire.produce("t", batch(b"now"), partition=number % 2)
            assert await wire.fetch_values("t", number // 2 + 1, partition=number % 2) == [b"now"]
        stores[0].answers.set()
        (topic,) = (await behind.receive()).responses
        assert records_in(topic.partitions[0])[0].value == b"cold"


async def test_records_of_today_wait_for_those_of_last_week_only_so_long(start_node: StartNode) -> None:
    stores: list[HangingGets] = []

    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t", partitions=2)
        await wire.produce("t", batch(b"cold"), partition=0)
    async with (
        start_node(wrap_store=partial(HangingGets.into, stores), remote_fetch_max_wait_ms=20) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.produce("t", batch(b"hot"), partition=1)
        stores[0].answers.clear()
        (topic,) = (await wire.call("Fetch", 12, both(cold=0, hot=0))).responses
        found = {data.partition_index: [record.value for record in records_in(data)] for data in topic.partitions}
        assert found == {0: [], 1: [b"hot"]}
        assert node.running.broker.metrics.fetches_late == 1
        # Alone it is told that there is nothing yet, as often as it asks; one GET is under way for all of them.
        for _ in range(3):
            (topic,) = (await wire.call("Fetch", 12, both(cold=0, hot=1))).responses
            assert [records_in(data) for data in topic.partitions] == [[], []]
        assert node.running.storage.reader.budget.requests_under_way == 1
        stores[0].answers.set()
        await eventually(lambda: not node.running.storage.reader.budget.requests_under_way, "the GET's end")
        (topic,) = (await wire.call("Fetch", 12, both(cold=0, hot=1))).responses
        assert [record.value for record in records_in(topic.partitions[0])] == [b"cold"]
        assert node.running.storage.reader.missed_blocks == 1
