"""What follows a refused batch is refused as that was (I11): an idempotent producer need not begin a new epoch, under which it would send again
what other brokers have."""

from __future__ import annotations

import asyncio

import pytest
from confluent_kafka import Producer

from broker import arrivals
from broker.node import Node
from broker.producer_state import DUPLICATES_REMEMBERED
from broker.refused_batches import FOLLOWERS, MAX_PARTITIONS, RefusedBatches
from protocol.errors import ErrorCode
from tests.broker.wire import Wire, batch, produce_request

NOT_LEADER = ErrorCode.NOT_LEADER_OR_FOLLOWER
OUT_OF_ORDER = ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
_COMES_AND_GOES = 20


def numbered(sequence: int, *, producer_id: int = 7, producer_epoch: int = 0) -> bytes:
    """A batch of one record."""
    return batch(b"%d" % sequence, producer_id=producer_id, producer_epoch=producer_epoch, base_sequence=sequence)


def test_a_refusal_accounts_for_what_can_have_been_under_way_behind_it() -> None:
    refused = RefusedBatches()
    refused.add("t", 0, numbered(5), NOT_LEADER)
    for sequence in range(6, 6 + FOLLOWERS):
        assert refused.account_for("t", 0, numbered(sequence)) is NOT_LEADER
        refused.add("t", 0, numbered(sequence), NOT_LEADER)
    assert FOLLOWERS + 1 == DUPLICATES_REMEMBERED
    assert refused.account_for("t", 0, numbered(6)) is None, "no client has more under way"
    refused.add("t", 0, numbered(5), NOT_LEADER)
    assert refused.account_for("t", 0, numbered(6)) is NOT_LEADER, "it was refused once more, and so is what follows"


@pytest.mark.parametrize(
    ("topic", "index", "records"),
    [
        ("t", 0, numbered(4)),
        ("t", 0, numbered(5)),
        ("t", 0, numbered(6, producer_id=8)),
        ("t", 0, numbered(6, producer_epoch=1)),
        ("t", 1, numbered(6)),
        ("u", 0, numbered(6)),
    ],
)
def test_it_accounts_for_nothing_else(topic: str, index: int, records: bytes) -> None:
    refused = RefusedBatches()
    refused.add("t", 0, numbered(5), NOT_LEADER)
    assert refused.account_for(topic, index, records) is None


def test_sequences_wrap() -> None:
    refused = RefusedBatches()
    refused.add("t", 0, numbered(2**31 - 1), NOT_LEADER)
    assert refused.account_for("t", 0, numbered(0)) is NOT_LEADER
    assert refused.account_for("t", 0, numbered(2**31 - 2)) is None


def test_what_is_refused_for_good_or_has_no_producer_accounts_for_nothing() -> None:
    refused = RefusedBatches()
    refused.add("t", 0, numbered(5), ErrorCode.MESSAGE_TOO_LARGE)
    refused.add("t", 0, batch(b"without a producer"), NOT_LEADER)
    refused.add("t", 0, b"short", NOT_LEADER)
    refused.add("t", 0, b"", NOT_LEADER)
    assert not refused


def test_a_batch_that_is_appended_ends_it() -> None:
    refused = RefusedBatches()
    refused.add("t", 0, numbered(5), NOT_LEADER)
    refused.appended("t", 0)
    assert refused.account_for("t", 0, numbered(6)) is None


def test_they_are_bounded() -> None:
    refused = RefusedBatches()
    for index in range(MAX_PARTITIONS + 10):
        refused.add("t", index, numbered(5), NOT_LEADER)
    assert len(refused) == MAX_PARTITIONS
    assert not refused.follows("t", 9, numbered(6))
    assert refused.follows("t", 10, numbered(6))


async def test_a_batch_behind_one_that_waited_too_long_is_refused_alike(
    node: Node, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partition opens between the two."""
    monkeypatch.setattr(arrivals, "PATIENCE_S", 0.05)
    await wire.create_topic("t")
    for sequence in range(3):
        assert (await wire.produce("t", numbered(sequence))).error_code == 0
    topic = node.running.broker.topics.by_name["t"]
    partition = topic.partitions[0]
    topic.partitions[0] = None
    for sequence in (3, 4):
        wire.send("Produce", 9, produce_request("t", numbered(sequence)))
    answers = [(await wire.receive()).responses[0].partition_responses[0] for _ in range(2)]
    assert [answer.error_code for answer in answers] == [NOT_LEADER, NOT_LEADER]
    assert node.running.broker.arrivals.waited == 1, "nothing can come of the second one"
    topic.partitions[0] = partition
    late = await wire.produce("t", numbered(5))
    assert (late.error_code, late.base_offset) == (NOT_LEADER, -1)
    async with await Wire.connect(node.bootstrap_servers) as other:
        assert (await other.produce("t", numbered(5))).error_code == OUT_OF_ORDER, "nothing was refused there"
    again = [await wire.produce("t", numbered(sequence)) for sequence in (3, 4, 5)]
    assert [(answer.error_code, answer.base_offset) for answer in again] == [(0, 3), (0, 4), (0, 5)]
    assert (await wire.produce("t", numbered(9))).error_code == OUT_OF_ORDER, "that has another cause"
    assert await wire.fetch_all("t") == [b"%d" % sequence for sequence in range(6)]


async def test_librdkafka_begins_no_new_epoch_while_a_partition_comes_and_goes(
    node: Node, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "PATIENCE_S", 0.02)
    await wire.create_topic("t")
    topic = node.running.broker.topics.by_name["t"]
    partition = topic.partitions[0]
    assert partition is not None
    producer = Producer({"bootstrap.servers": node.bootstrap_servers, "enable.idempotence": True, "linger.ms": 0})
    sent = 0
    for _ in range(_COMES_AND_GOES):
        for open_now in (True, False):
            topic.partitions[0] = partition if open_now else None
            if open_now:
                node.running.broker.arrivals.arrived(partition.stream.stream_id)
            for _ in range(10):
                producer.produce("t", b"%d" % sent)
                sent += 1
                await asyncio.sleep(0.003)  # longer in all than the first batch waits
    topic.partitions[0] = partition
    assert await asyncio.to_thread(producer.flush, 60) == 0
    assert await wire.fetch_all("t") == [b"%d" % number for number in range(sent)]
    (entry,) = partition.producers.entries()
    assert entry.producer_epoch == 0
