"""Fetch: limits, long poll, sessions, errors; from the log cache and from objects."""

from __future__ import annotations

import asyncio

import pytest

from broker.node import Node
from protocol.compression import Codec
from protocol.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from protocol.messages.fetch import FetchPartition, FetchRequest, FetchTopic, ForgottenTopic
from protocol.records import iter_bounds
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch, eventually, fetch_request, only_partition, records_in


@pytest.mark.parametrize("version", range(4, 19))
async def test_every_version_reads(wire: Wire, version: int) -> None:
    topic_id = await wire.create_topic("t")
    await wire.produce("t", batch(b"a", b"b"))
    request = fetch_request("t" if version < 13 else topic_id)
    data = only_partition(await wire.call("Fetch", version, request))
    assert (data.error_code, data.high_watermark, data.last_stable_offset) == (0, 2, 2)
    assert [record.value for record in records_in(data)] == [b"a", b"b"]


async def test_records_are_empty_never_null(wire: Wire) -> None:
    # KAFKA-18646: librdkafka takes null for an error.
    topic_id = await wire.create_topic("t")
    for version in range(4, 19):
        request = fetch_request("t" if version < 13 else topic_id)
        assert only_partition(await wire.call("Fetch", version, request)).records == b""


async def test_whole_batches_even_below_the_asked_offset(wire: Wire) -> None:
    await wire.create_topic("t")
    await wire.produce("t", batch(b"a", b"b", b"c"))
    data = await wire.fetch("t", 2)
    assert [record.offset for record in records_in(data)] == [0, 1, 2]


async def test_offsets_out_of_range(wire: Wire) -> None:
    await wire.create_topic("t")
    await wire.produce("t", batch(b"a"))
    assert (await wire.fetch("t", 1)).error_code == 0  # the log end: nothing there yet
    for offset in (2, -1):
        data = await wire.fetch("t", offset)
        assert (data.error_code, data.records) == (1, b"")


async def test_unknown_topics_and_partitions(wire: Wire) -> None:
    topic_id = await wire.create_topic("t")
    assert (await wire.fetch("missing")).error_code == 3
    assert (await wire.fetch("t", partition=1)).error_code == 3
    assert only_partition(await wire.call("Fetch", 13, fetch_request(bytes(15) + b"x"))).error_code == 100
    assert only_partition(await wire.call("Fetch", 13, fetch_request(topic_id, partition=1))).error_code == 3


async def test_leader_epochs_are_compared(wire: Wire) -> None:
    await wire.create_topic("t")
    assert (await wire.fetch("t", current_leader_epoch=0)).error_code == 0
    assert (await wire.fetch("t", current_leader_epoch=1)).error_code == 75


async def test_old_consumers_do_not_get_zstd(wire: Wire) -> None:
    await wire.create_topic("t")
    await wire.produce("t", batch(b"x" * 100, codec=Codec.ZSTD))
    assert (await wire.fetch("t", version=9)).error_code == 76
    assert await wire.fetch_values("t", version=10) == [b"x" * 100]


# ---- limits --------------------------------------------------------------------------------------------------


async def test_the_first_batch_may_exceed_every_limit(wire: Wire) -> None:
    # KIP-74: else a consumer with small limits would never get on.
    await wire.create_topic("t", partitions=2)
    for partition in (0, 1):
        for _ in range(2):
            await wire.produce("t", batch(b"x" * 1000), partition=partition)
    request = FetchRequest(
        max_bytes=10,
        topics=[
            FetchTopic(topic="t", partitions=[FetchPartition(partition=n, partition_max_bytes=10) for n in (0, 1)])
        ],
    )
    (topic,) = (await wire.call("Fetch", 12, request)).responses
    first, second = topic.partitions
    assert [record.offset for record in records_in(first)] == [0]
    assert second.records == b""


async def test_max_bytes_bound_the_response(wire: Wire) -> None:
    await wire.create_topic("t", partitions=3)
    size = len(batch(b"x" * 1000))
    for partition in range(3):
        for _ in range(5):
            await wire.produce("t", batch(b"x" * 1000), partition=partition)
    request = FetchRequest(
        max_bytes=4 * size,
        topics=[
            FetchTopic(
                topic="t", partitions=[FetchPartition(partition=n, partition_max_bytes=3 * size) for n in range(3)]
            )
        ],
    )
    (topic,) = (await wire.call("Fetch", 12, request)).responses
    assert [len(data.records) // size for data in topic.partitions] == [3, 1, 0]


# ---- long poll -----------------------------------------------------------------------------------------------


async def test_min_bytes_are_waited_for(wire: Wire, node: Node) -> None:
    await wire.create_topic("t")
    size = len(batch(b"x" * 100))
    async with await Wire.connect(node.bootstrap_servers) as reader:
        reader.send("Fetch", 12, fetch_request("t", max_wait_ms=60_000, min_bytes=3 * size))
        waiting = asyncio.create_task(reader.receive())
        for _ in range(2):
            await wire.produce("t", batch(b"x" * 100))
        assert not waiting.done()
        await wire.produce("t", batch(b"x" * 100))
        assert len(only_partition(await asyncio.wait_for(waiting, 10)).records) == 3 * size


async def test_when_the_time_is_up_what_is_there_is_answered(wire: Wire) -> None:
    await wire.create_topic("t")
    await wire.produce("t", batch(b"x"))
    assert await wire.fetch_values("t", max_wait_ms=50, min_bytes=1 << 20) == [b"x"]


async def test_an_error_is_answered_at_once(wire: Wire) -> None:
    await wire.create_topic("t")
    request = FetchRequest(
        max_wait_ms=60_000,
        min_bytes=1,
        max_bytes=1 << 20,
        topics=[
            FetchTopic(topic="t", partitions=[FetchPartition(partition=0, partition_max_bytes=1 << 20)]),
            FetchTopic(topic="missing", partitions=[FetchPartition(partition=0, partition_max_bytes=1 << 20)]),
        ],
    )
    response = await asyncio.wait_for(wire.call("Fetch", 12, request), 10)
    assert [topic.partitions[0].error_code for topic in response.responses] == [0, 3]


async def test_a_waiting_fetch_hears_of_the_deletion(wire: Wire, node: Node) -> None:
    topic_id = await wire.create_topic("t")
    async with await Wire.connect(node.bootstrap_servers) as reader:
        reader.send("Fetch", 12, fetch_request("t", max_wait_ms=60_000))
        waiting = asyncio.create_task(reader.receive())
        await asyncio.sleep(0.05)
        await wire.call(
            "DeleteTopics", 6, DeleteTopicsRequest(topics=[DeleteTopicState(topic_id=topic_id)], timeout_ms=10_000)
        )
        assert only_partition(await asyncio.wait_for(waiting, 10)).error_code == 6


async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind(wire: Wire, node: Node) -> None:
    await wire.create_topic("t")
    partition = node.running.broker.topics.by_name["t"].partitions[0]
    assert partition is not None
    async with await Wire.connect(node.bootstrap_servers) as reader:
        reader.send("Fetch", 12, fetch_request("t", max_wait_ms=60_000))
        await reader.writer.drain()
        await eventually(lambda: partition._waiters, "the wait")
    await eventually(lambda: not partition._waiters, "the end of the wait")
    assert partition.stream.listener is None


# ---- sessions ------------------------------------------------------------------------------------------------


async def test_a_session_over_the_wire(wire: Wire) -> None:
    await wire.create_topic("t", partitions=3)
    request = FetchRequest(
        session_id=0,
        session_epoch=0,
        max_bytes=1 << 20,
        topics=[
            FetchTopic(topic="t", partitions=[FetchPartition(partition=n, partition_max_bytes=1000) for n in range(3)])
        ],
    )
    first = await wire.call("Fetch", 12, request)
    assert first.session_id != 0
    assert [data.partition_index for data in first.responses[0].partitions] == [0, 1, 2]

    await wire.produce("t", batch(b"x"), partition=1)
    second = await wire.call("Fetch", 12, FetchRequest(session_id=first.session_id, session_epoch=1, max_bytes=1 << 20))
    assert [data.partition_index for data in second.responses[0].partitions] == [1]

    third = await wire.call(
        "Fetch",
        12,
        FetchRequest(
            session_id=first.session_id,
            session_epoch=2,
            max_bytes=1 << 20,
            forgotten_topics_data=[ForgottenTopic(topic="t", partitions=[0, 2])],
            topics=[
                FetchTopic(
                    topic="t", partitions=[FetchPartition(partition=1, fetch_offset=1, partition_max_bytes=1000)]
                )
            ],
        ),
    )
    assert third.responses == []

    wrong = await wire.call("Fetch", 12, FetchRequest(session_id=first.session_id, session_epoch=9))
    assert (wrong.error_code, wrong.responses) == (71, [])
    gone = await wire.call("Fetch", 12, FetchRequest(session_id=12345, session_epoch=1))
    assert gone.error_code == 70


# ---- from objects --------------------------------------------------------------------------------------------


async def test_everything_is_readable_from_objects_after_a_restart(start_node: StartNode) -> None:
    values = [b"%06d" % n * 100 for n in range(3000)]
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        for at in range(0, len(values), 10):
            assert (await wire.produce("t", batch(*values[at : at + 10]))).base_offset == at
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        got: list[bytes | None] = []
        while len(got) < len(values):
            found = await wire.fetch_values("t", len(got), partition_max_bytes=100_000)
            assert found
            got += found
        assert got == values
        # The tail continues where it was.
        assert (await wire.produce("t", batch(b"next"))).base_offset == len(values)
        assert await wire.fetch_values("t", len(values)) == [b"next"]


async def test_cold_and_hot_partitions_in_one_fetch(start_node: StartNode) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t", partitions=20)
        for partition in range(20):
            await wire.produce("t", batch(b"cold%d" % partition), partition=partition)
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        for partition in range(0, 20, 2):
            await wire.produce("t", batch(b"hot"), partition=partition)
        request = FetchRequest(
            max_wait_ms=1000,
            min_bytes=20 * len(batch(b"hot")),  # there is as much, so all of it is waited for
            max_bytes=1 << 20,
            topics=[
                FetchTopic(
                    topic="t",
                    partitions=[
                        FetchPartition(partition=n, fetch_offset=1 if n % 4 == 0 else 0, partition_max_bytes=1 << 16)
                        for n in range(20)
                    ],
                )
            ],
        )
        (topic,) = (await wire.call("Fetch", 12, request)).responses
        for data in topic.partitions:
            n = data.partition_index
            values = [record.value for record in records_in(data)]
            assert values[:1] == ([b"hot"] if n % 4 == 0 else [b"cold%d" % n])


async def test_cold_reads_respect_limits(start_node: StartNode) -> None:
    size = len(batch(b"x" * 1000))
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        for _ in range(10):
            await wire.produce("t", batch(b"x" * 1000))
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        data = await wire.fetch("t", 3, partition_max_bytes=3 * size)
        assert [bounds.base_offset for _, bounds in iter_bounds(data.records)] == [3, 4, 5]
        data = await wire.fetch("t", 3, partition_max_bytes=1)
        assert [bounds.base_offset for _, bounds in iter_bounds(data.records)] == [3]
