"""What a broker reports that its WAL holds alone is what clients were told was stored, and no object has."""

from __future__ import annotations

import pytest

from broker.held_report import LEAST_INTERVAL_S, HeldReport
from broker.losses import loss_text
from broker.node import Node
from controller.losses import KnownLoss, StreamLoss
from controller.records import NodeRegistered, Unuploaded, UnuploadedStream
from controller.reports import MAX_NAMED
from controller.tables import NodeStatus
from s3stream.errors import StorageError, StreamFenced
from s3stream.log_cache import CacheBlock, StreamTail
from s3stream.metadata import StreamId
from s3stream.unuploaded import UnuploadedRange, unuploaded_ranges
from tests.broker.conftest import StartNode
from tests.broker.kept import upload_all
from tests.broker.wire import Wire, batch


async def test_it_is_what_was_acknowledged_and_not_uploaded(start_node: StartNode) -> None:
    async with start_node(upload_interval_ms=600_000) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t", partitions=3)
        ids = [state.stream_id for state in node.running.broker.topics.by_name["t"].info.partitions]
        assert held_by(node) == Unuploaded(record_count=0, size_bytes=0, stream_count=0, oldest_age_ms=0)
        one, three = batch(b"x" * 100), batch(b"0", b"1", b"2")
        await wire.produce("t", one, partition=0)
        await upload_all(node)
        await wire.produce("t", one, partition=0)
        node.running.storage.seal()  # on its way into an object, or in the block after it: both count
        await wire.produce("t", three, partition=0)
        await wire.produce("t", three, partition=2)
        found = held_by(node)
        of_zero = [each for each in found.streams if each.stream_id == ids[0]]
        assert [(each.base_offset, each.end_offset) for each in of_zero] in ([(1, 5)], [(2, 5)])
        await upload_all(node)
        await wire.produce("t", three, partition=2)
        found = held_by(node)
        assert found.oldest_age_ms >= 0
        assert (found.record_count, found.size_bytes, found.stream_count) == (3, len(three), 1)
        assert found.streams == (
            UnuploadedStream(stream_id=ids[2], base_offset=3, end_offset=6, size_bytes=len(three)),
        )


def held_by(node: Node) -> Unuploaded:
    report = HeldReport(node.running.storage, node_epoch=7, clock=lambda: 0.0)()
    assert report is not None
    assert report.node_epoch == 7
    return report.held


class Confirmed:
    """A stream, as far as it is needed."""

    def __init__(self, tail: StreamTail, confirmed_offset: int, closed: StorageError | None = None) -> None:
        self.tail = tail
        self.confirmed_offset = confirmed_offset
        self.closed = closed


def test_what_waits_for_the_wal_does_not_count_nor_what_is_of_no_stream_of_this_node() -> None:
    blocks = [CacheBlock(0, 0, lambda: None) for _ in range(2)]
    tails = {StreamId(number): StreamTail() for number in (1, 2, 3, 4, 5)}
    for block, base in zip(blocks, (0, 20), strict=True):
        for stream_id, tail in tails.items():
            part = tail.open_part(stream_id, block, base)
            part.add(base + 10, 0, 100, 0)
            part.add(base + 20, 0, 50, 0)
    one, two, three, four, _ = tails
    streams = {
        one: Confirmed(tails[one], 30),
        two: Confirmed(tails[two], 0),
        three: Confirmed(StreamTail(), 40),  # deleted, and restored since
        four: Confirmed(tails[four], 40, StreamFenced("another node has it")),
    }
    assert unuploaded_ranges(blocks, streams) == [UnuploadedRange(one, 0, 30, 250)]  # type: ignore[arg-type]


class Many:
    """A storage engine with many partitions, in which a look takes a while."""

    unuploaded_age_s = 4.5

    def __init__(self) -> None:
        self.now_s = 100.0

    def unuploaded(self) -> list[UnuploadedRange]:
        self.now_s += 0.02
        return [UnuploadedRange(StreamId(number), 0, 2, number) for number in range(1, 2 * MAX_NAMED + 1)]


def test_a_report_is_bounded_and_looking_takes_little_of_the_time() -> None:
    many = Many()
    report = HeldReport(many, node_epoch=1, clock=lambda: many.now_s)
    first = report()
    assert first is not None
    held = first.held
    assert (held.record_count, held.stream_count, held.oldest_age_ms) == (4 * MAX_NAMED, 2 * MAX_NAMED, 4_500)
    assert held.size_bytes == sum(range(2 * MAX_NAMED + 1))
    assert len(held.streams) == MAX_NAMED
    assert min(each.size_bytes for each in held.streams) == MAX_NAMED + 1, "those with the most bytes"
    many.now_s += LEAST_INTERVAL_S
    assert report() is None, "a look took 20 ms, so the next comes after two seconds"
    many.now_s += 2.0
    assert report() is not None


NODE = NodeRegistered(
    node_id=2,
    node_epoch=3,
    wal_id="w",
    wal_epoch=0,
    address="",
    rack="",
    registered_at_ms=0,
    lease_ms=3_000,
)


def known(
    held: Unuploaded | None,
    *streams: tuple[int, int, int],
    before_silence_ms: int = 400,
    status: NodeStatus = NodeStatus.DEAD,
    node: NodeRegistered = NODE,
) -> KnownLoss:
    return KnownLoss(
        node=node,
        status=status,
        held=held,
        before_silence_ms=before_silence_ms,
        streams={
            StreamId(stream_id): StreamLoss(base_offset=base, end_offset=end, size_bytes=-1)
            for stream_id, base, end in streams
        },
    )


def of(records: int, streams: int, named: int) -> Unuploaded:
    return Unuploaded(
        record_count=records,
        size_bytes=3 << 20,
        stream_count=streams,
        oldest_age_ms=3_900,
        streams=tuple(
            UnuploadedStream(stream_id=StreamId(number), base_offset=0, end_offset=10, size_bytes=1)
            for number in range(named)
        ),
    )


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (
            known(of(12_345, 1, 1), (0, 0, 12_345)),
            "node 2 last reported, 0.4 s before it fell silent, 12,345 records (3.0 MiB) in 1 partition that are nowhere else; the oldest had waited for at least 3.9 s; "
            "what it acknowledged after that is not known",
        ),
        (
            known(of(30, 2, 2), (0, 5, 10), before_silence_ms=-1),
            "node 2 last reported, nobody knows how long before it fell silent, 30 records (3.0 MiB) in 2 partitions that were nowhere else, of which "
            "25 records came into objects or were deleted afterwards, so that 5 are left; the oldest had waited for at least 3.9 s; what it acknowledged after that is not known",
        ),
        (
            known(of(30, 4, 2), (0, 0, 10), (1, 0, 10)),
            "node 2 last reported, 0.4 s before it fell silent, 30 records (3.0 MiB) in 4 partitions that were nowhere else (it named 2 of these; some "
            "may be in objects by now); the oldest had waited for at least 3.9 s; what it acknowledged after that is not known",
        ),
        (
            known(of(0, 0, 0)),
            "node 2 last reported, 0.4 s before it fell silent, that all it had acknowledged was in objects; what it acknowledged after that is not known",
        ),
        (
            known(None),
            "what node 2 had acknowledged and not uploaded is not known: no broker that led had a report of it",
        ),
        (
            known(None, status=NodeStatus.ALIVE),
            "node 2 is not taken for dead yet: what it reported last is told once another broker has led for some seconds",
        ),
        (
            known(
                None,
                status=NodeStatus.ALIVE,
                node=NodeRegistered(
                    node_id=2, node_epoch=3, wal_id="w", wal_epoch=0, address="", rack="", registered_at_ms=0
                ),
            ),
            "node 2 worked alone, so nobody else knows what it had acknowledged and not uploaded",
        ),
    ],
)
def test_what_is_known_is_told_and_what_is_not(loss: KnownLoss, text: str) -> None:
    assert loss_text(loss) == text
