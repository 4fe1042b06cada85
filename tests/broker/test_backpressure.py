"""Full logs, spent budgets and clients that do not read: who has to wait, and that nobody else has to (I13, I14)."""

from __future__ import annotations

import asyncio
import struct

import pytest

from broker import connection as connections
from broker import server
from broker.connection import Connection, name_of
from broker.node import Node
from broker.receive import UNCHARGED_BYTES
from protocol.apis import encode_request
from protocol.messages.api_versions import ApiVersionsRequest
from protocol.messages.metadata import MetadataRequest
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch, eventually, fetch_request, produce_request, records_in


def server_side(node: Node, wire: Wire) -> Connection:
    """The broker's end of a connection."""
    name = name_of(wire.writer.get_extra_info("sockname"))
    return next(one for one in node.running.server._connections if one.peer == name)


async def test_producers_wait_while_the_object_store_is_away_and_the_log_is_full(start_node: StartNode) -> None:
    async with (
        start_node() as node,  # a WAL of 16 MiB
        await Wire.connect(node.bootstrap_servers) as wire,
        await Wire.connect(node.bootstrap_servers) as other,
    ):
        await wire.create_topic("t", partitions=3)
        store = node.running.store
        store.failing = True
        # Acknowledgements go on until the WAL is full; then the socket is not read any more.
        count = 40
        for n in range(count):
            value = b"%04d" % n + bytes(300_000)
            wire.send("Produce", 9, produce_request("t", *[batch(value)] * 3))
        await eventually(lambda: node.running.server.metrics.produce_stalls > 0, "a stall")
        connection = server_side(node, wire)
        assert connection.acks.pending
        assert not connection._reading
        # Requests of other kinds are served meanwhile.
        assert (await other.call("Metadata", 9, MetadataRequest(topics=None))).topics[0].name == "t"
        store.failing = False
        for n in range(count):
            (answer,) = (await wire.receive()).responses
            # Those that stalled half-way went on where they were: no batch is missing, none is there twice.
            assert [(one.error_code, one.base_offset) for one in answer.partition_responses] == [(0, n)] * 3
        for partition in range(3):
            for n in (0, 17, count - 1):
                (value,) = await other.fetch_values("t", n, partition=partition, partition_max_bytes=1)
                assert value is not None
                assert value[:4] == b"%04d" % n


async def test_a_client_that_never_reads_is_not_read_either(node: Node) -> None:
    async with (
        await Wire.connect(node.bootstrap_servers) as deaf,
        await Wire.connect(node.bootstrap_servers) as other,
    ):
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(200_000):
            deaf.send("ApiVersions", 0, ApiVersionsRequest())
        flushed = asyncio.create_task(deaf.writer.drain())
        connection = server_side(node, deaf)
        await eventually(lambda: not connection._reading, "back-pressure")
        assert connection.transport is not None
        assert connection.transport.get_write_buffer_size() < 1 << 20
        assert (await other.call("ApiVersions", 0, ApiVersionsRequest())).error_code == 0
        # As soon as it reads, it is served: in order, and all of it.
        deaf.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(1000):
            await deaf.receive()
        flushed.cancel()
        await asyncio.gather(flushed, return_exceptions=True)


async def test_a_consumer_too_slow_for_the_memory_it_holds_is_disconnected(start_node: StartNode) -> None:
    async with (
        start_node(wal_uri="null://", memory_bytes=384 << 20) as node,  # an arena of 192 MiB
        await Wire.connect(node.bootstrap_servers) as producer,
        await Wire.connect(node.bootstrap_servers) as slow,
    ):
        await producer.create_topic("t", max_message_bytes="4000000")
        value = bytes(1_000_000)
        for _ in range(40):
            await producer.produce("t", batch(value))
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        slow.send("Fetch", 12, fetch_request("t", partition_max_bytes=1 << 26))
        await slow.writer.drain()
        connection = server_side(node, slow)
        await eventually(lambda: connection._blocks, "a pinned block")
        # The ring comes round to what the slow one holds: producers go on, it does not.
        for _ in range(220):
            assert (await producer.produce("t", batch(value))).error_code == 0
        assert connection.transport is None
        assert not connection._blocks


async def test_a_slow_consumer_gets_a_copy_of_what_will_soon_be_overwritten(start_node: StartNode) -> None:
    async with (
        start_node(wal_uri="null://", memory_bytes=256 << 20) as node,  # an arena of 128 MiB
        await Wire.connect(node.bootstrap_servers) as producer,
        await Wire.connect(node.bootstrap_servers) as slow,
    ):
        await producer.create_topic("t", max_message_bytes="4000000")
        values = [bytes([n]) * 1_000_000 for n in range(200)]
        for value in values[:110]:
            await producer.produce("t", batch(value))
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        slow.send("Fetch", 12, fetch_request("t", partition_max_bytes=1 << 26))
        await slow.writer.drain()
        connection = server_side(node, slow)
        await eventually(lambda: connection._copied_bytes, "a copy")
        assert not connection._blocks
        for value in values[110:]:
            assert (await producer.produce("t", batch(value))).error_code == 0
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        records = records_in((await slow.receive()).responses[0].partitions[0])
        assert [record.value for record in records] == values[: len(records)]
        assert len(records) > 5


async def test_what_deaf_clients_ask_for_is_bounded_and_holds_nobody_up_for_long(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SWEEP_INTERVAL_S", 0.05)
    monkeypatch.setattr(connections, "STUCK_TIMEOUT_S", 0.5)
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as other:  # a send budget of 4 MiB
        await other.create_topic("t", partitions=10_000)
        deaf = [await Wire.connect(node.bootstrap_servers) for _ in range(60)]
        for wire in deaf:
            wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(20):  # half a megabyte each
                wire.send("Metadata", 9, MetadataRequest(topics=None))
        most = 0

        def too_much() -> bool:
            nonlocal most
            most = max(most, node.running.server.unsent_bytes)
            return bool(node.running.server._waiting_to_send)

        await eventually(too_much, "the limit")
        assert most < 10 << 20
        # Who does not take its answers loses its connection; all others go on.
        assert (await other.call("Metadata", 9, MetadataRequest(topics=[]))).brokers
        await eventually(lambda: node.running.server.connection_count == 1, "the end of the deaf ones")
        assert node.running.server.unsent_bytes == 0
        assert not node.running.server._waiting_to_send
        for wire in deaf:
            wire.writer.transport.abort()


async def test_receive_memory_is_shared_fairly(start_node: StartNode) -> None:
    async with start_node(queued_max_request_bytes=1 << 20) as node:
        clients = [await Wire.connect(node.bootstrap_servers) for _ in range(6)]
        await clients[0].create_topic("t", max_message_bytes="4000000")
        value = bytes(3_000_000)  # each of them alone is more than the budget
        answers = await asyncio.gather(*(client.produce("t", batch(value)) for client in clients for _ in range(1)))
        assert sorted(answer.base_offset for answer in answers) == list(range(6))
        for client in clients:
            client.writer.close()
        await eventually(lambda: node.running.server.connection_count == 0, "the end of all connections")
        assert node.running.server.budget.free_bytes == 1 << 20


async def test_what_many_pipeline_is_bounded_and_holds_nobody_up(start_node: StartNode) -> None:
    async with (
        start_node(queued_max_request_bytes=1 << 20) as node,
        await Wire.connect(node.bootstrap_servers) as producer,
    ):
        await producer.create_topic("t", max_message_bytes="4000000")
        greedy = [await Wire.connect(node.bootstrap_servers) for _ in range(30)]
        for wire in greedy:
            wire.send("Fetch", 12, fetch_request("t", max_wait_ms=60_000, min_bytes=1 << 30))
            wire.writer.write(
                b"".join(encode_request(18, 0, 5, "test", ApiVersionsRequest())) * 10_000
            )  # may not start
        await eventually(lambda: not any(server_side(node, wire)._reading for wire in greedy), "back-pressure")
        held = sum(server_side(node, wire)._buffer.capacity_bytes for wire in greedy)
        assert held <= (1 << 20) + len(greedy) * UNCHARGED_BYTES
        assert (await producer.produce("t", batch(bytes(3_000_000)))).error_code == 0
        for wire in greedy:
            wire.writer.transport.abort()


async def test_who_drips_bytes_does_not_hold_memory_that_others_wait_for(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SWEEP_INTERVAL_S", 0.05)
    monkeypatch.setattr(connections, "STUCK_TIMEOUT_S", 1)
    async with (
        start_node(queued_max_request_bytes=1 << 20) as node,
        await Wire.connect(node.bootstrap_servers) as dripping,
        await Wire.connect(node.bootstrap_servers) as honest,
    ):
        await honest.create_topic("t", max_message_bytes="4000000")
        dripping.writer.write(struct.pack(">ih", 50 << 20, 0) + bytes(3 << 20))

        async def drip() -> None:
            while True:
                dripping.writer.write(b"\0")
                await asyncio.sleep(0.02)

        await eventually(lambda: node.running.server.budget.free_bytes < 0, "an overdraft")
        task = asyncio.create_task(drip())
        assert (await honest.produce("t", batch(bytes(3_000_000)))).error_code == 0
        task.cancel()


async def test_idle_connections_are_closed(start_node: StartNode) -> None:
    async with (
        start_node(connections_max_idle_ms=1000) as node,
        await Wire.connect(node.bootstrap_servers) as idle,
        await Wire.connect(node.bootstrap_servers) as waiting,
    ):
        await waiting.create_topic("t")
        waiting.send("Fetch", 12, fetch_request("t", max_wait_ms=2500))  # silent too, but served
        assert await idle.closed_by_broker()
        assert (await waiting.receive()).error_code == 0


async def test_a_client_that_takes_nothing_is_closed(start_node: StartNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SWEEP_INTERVAL_S", 0.05)
    monkeypatch.setattr(connections, "STUCK_TIMEOUT_S", 0.3)
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as deaf:
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(200_000):
            deaf.send("ApiVersions", 0, ApiVersionsRequest())
        await eventually(lambda: node.running.server.connection_count == 0, "the end of the connection")


async def test_connections_leave_nothing_behind(node: Node) -> None:
    for _ in range(20):
        async with await Wire.connect(node.bootstrap_servers) as wire:
            wire.writer.write((5000).to_bytes(4, "big") + bytes(1000))  # leaves in the middle of a request
            await wire.writer.drain()
    server = node.running.server
    await eventually(lambda: server.connection_count == 0, "the end of all connections")
    assert not server._dirty
    assert server.budget.free_bytes == node.settings.receive_budget_bytes


async def test_what_slow_consumers_have_not_taken_is_bounded(start_node: StartNode) -> None:
    async with start_node() as node:  # a send budget of 4 MiB
        slow = [await Wire.connect(node.bootstrap_servers) for _ in range(40)]
        await slow[0].create_topic("t")
        for _ in range(100):
            wanted = produce_request("t", batch(*[b"x" * 100] * 1000))
            for _ in range(4):  # small enough to be joined: copies, which nobody can take back
                slow[0].send("Produce", 9, wanted)
            for _ in range(4):
                await slow[0].receive()
        for wire in slow:
            wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
            wire.send("Fetch", 12, fetch_request("t", partition_max_bytes=1 << 26))
        server = node.running.server
        await eventually(lambda: all(server_side(node, wire)._copied_bytes for wire in slow[-5:]), "answers")
        assert 0 < server.unsent_bytes < (4 << 20) + 41 * (200 << 10)
        # Each gets something, and after it has taken that, more.
        for wire in slow:
            wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert (await wire.receive()).responses[0].partitions[0].records
        await eventually(lambda: server.unsent_bytes == 0, "the end of all answers")
        for wire in slow:
            wire.writer.close()
