"""Requests that are well formed and mean no good: answered, or their connection closed, and nobody else notices (I13, I14)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from broker.dispatch import HANDLERS, max_request_elements
from broker.handlers import produce
from broker.testing import TidelogServer
from protocol.apis import API
from protocol.errors import ErrorCode
from protocol.messages.create_topics import CreatableTopic, CreateTopicsRequest
from protocol.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from protocol.messages.find_coordinator import FindCoordinatorRequest
from protocol.messages.init_producer_id import InitProducerIdRequest
from protocol.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from protocol.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from protocol.schema import Field, layout_of
from tests.broker.wire import batch, fetch_request, produce_request
from tests.hostile.bystander import TOPIC
from tests.hostile.conftest import Connect, Logged
from tests.protocol.examples import blank, filled

MANY = 8_000
SERVED = {produce.API_KEY: produce.MAX_VERSION} | {key: entry.max_version for key, entry in HANDLERS.items()}


@dataclass(frozen=True)
class Stuffed:
    """A request one of whose arrays holds thousands of elements."""

    key: int
    version: int
    field: Field

    def __str__(self) -> str:
        return f"{API[self.key].name}-{self.field.name}"

    def request(self, *, alike: bool) -> Any:
        api = API[self.key]
        flexible = self.version >= api.flexible_since
        layout = layout_of(api.request, self.version, flexible)
        request = filled(layout)
        element = self.field.kind.element
        assert element is not None
        numbers = itertools.cycle(range(1, 32_000))  # some fields have 16 bits

        def one() -> Any:
            if element.layout is not None:
                return blank(element.layout) if alike else filled(element.layout, numbers)
            return "name" if element.name == "string" else bytes(16) if element.name == "uuid" else next(numbers) % 100

        setattr(request, self.field.name, [one() for _ in range(MANY)])
        return request


def stuffed() -> Iterator[Stuffed]:
    """Every array at the top of every request that is served."""
    for key, version in sorted(SERVED.items()):
        api = API[key]
        for field in layout_of(api.request, version, version >= api.flexible_since).fields:
            if field.kind.name == "array":
                yield Stuffed(key, version, field)


def ask(connect: Connect, name: str, version: int, request: Any) -> Any:
    """The answer, None where the broker closed the connection."""
    with connect() as hostile:
        hostile.socket.settimeout(5)
        try:
            return hostile.call(name, version, request)
        except ConnectionError:
            return None
        except TimeoutError:
            return TimeoutError  # waits for others, as JoinGroup may


@pytest.mark.parametrize("alike", [True, False], ids=["alike", "different"])
@pytest.mark.parametrize("what", list(stuffed()), ids=str)
def test_arrays_of_thousands(connect: Connect, logged: Logged, what: Stuffed, alike: bool) -> None:
    """Whatever API it is: new ones are in the dispatcher's table, and so here, without a line."""
    ask(connect, API[what.key].name, what.version, what.request(alike=alike))
    assert not logged.lines("ERROR")
    assert not logged.lines("Traceback")


# ---- by API -----------------------------------------------------------------------------------------------------


def test_more_elements_than_memory_is_for_close_the_connection(
    connect: Connect, logged: Logged, server: TidelogServer
) -> None:
    most = max_request_elements(server.node.settings.memory_bytes)
    names = [MetadataRequestTopic(name=f"no-{n}") for n in range(100_000)]
    assert ask(connect, "Metadata", 9, MetadataRequest(topics=names, allow_auto_topic_creation=False)) is None
    (line,) = logged.lines("WARNING")
    assert "100000 elements" in line
    answer = ask(connect, "Metadata", 9, MetadataRequest(topics=names[:most], allow_auto_topic_creation=False))
    assert {topic.error_code for topic in answer.topics} == {ErrorCode.UNKNOWN_TOPIC_OR_PARTITION}


def test_metadata_tells_of_a_topic_once(connect: Connect) -> None:
    """Or two bytes of request would become a kilobyte, or a megabyte for a topic with thousands of partitions."""
    names = [MetadataRequestTopic(name=TOPIC)] * 10_000
    answer = ask(connect, "Metadata", 9, MetadataRequest(topics=names))
    assert [topic.name for topic in answer.topics] == [TOPIC]


@pytest.mark.parametrize(
    ("partitions", "replicas", "error"),
    [
        (2**31 - 1, 1, ErrorCode.POLICY_VIOLATION),
        (10_001, 1, ErrorCode.POLICY_VIOLATION),
        (0, 1, ErrorCode.INVALID_PARTITIONS),
        (-5, 1, ErrorCode.INVALID_PARTITIONS),
        (1, 0, ErrorCode.INVALID_REPLICATION_FACTOR),
        (1, -7, ErrorCode.INVALID_REPLICATION_FACTOR),
    ],
)
def test_impossible_counts_of_partitions(connect: Connect, partitions: int, replicas: int, error: ErrorCode) -> None:
    topic = CreatableTopic(name="huge", num_partitions=partitions, replication_factor=replicas)
    answer = ask(connect, "CreateTopics", 7, CreateTopicsRequest(topics=[topic], timeout_ms=5000))
    assert answer.topics[0].error_code == error


def test_very_many_topics_at_once_are_created_up_to_the_limit_of_a_request(
    connect: Connect, server: TidelogServer
) -> None:
    most = server.node.settings.max_partitions_per_request
    topics = [CreatableTopic(name=f"many-{n}", num_partitions=1, replication_factor=1) for n in range(most + 50)]
    answer = ask(connect, "CreateTopics", 7, CreateTopicsRequest(topics=topics, timeout_ms=1, validate_only=True))
    codes = [topic.error_code for topic in answer.topics]
    assert codes == [0] * most + [ErrorCode.POLICY_VIOLATION] * 50


def test_fetch_of_very_many_partitions(connect: Connect) -> None:
    partitions = [FetchPartition(partition=n, fetch_offset=n, partition_max_bytes=1 << 30) for n in range(15_000)]
    request = FetchRequest(max_wait_ms=0, session_epoch=-1, topics=[FetchTopic(topic=TOPIC, partitions=partitions)])
    answer = ask(connect, "Fetch", 12, request)
    codes = [one.error_code for one in answer.responses[0].partitions]
    assert codes[3:] == [ErrorCode.UNKNOWN_TOPIC_OR_PARTITION] * 14_997


@pytest.mark.parametrize("offset", [-1, -(2**63), 2**62, 2**63 - 1])
def test_fetch_from_where_nothing_is(connect: Connect, offset: int) -> None:
    answer = ask(connect, "Fetch", 12, fetch_request(TOPIC, offset, max_wait_ms=1000))
    assert answer.responses[0].partitions[0].error_code == ErrorCode.OFFSET_OUT_OF_RANGE


@pytest.mark.parametrize(
    ("leader_epoch", "error"),
    [
        (2**31 - 1, ErrorCode.UNKNOWN_LEADER_EPOCH),
        (2, ErrorCode.UNKNOWN_LEADER_EPOCH),
        (-1, ErrorCode.NONE),
    ],
)
def test_leader_epochs_that_lie(connect: Connect, leader_epoch: int, error: ErrorCode) -> None:
    answer = ask(connect, "Fetch", 12, fetch_request(TOPIC, 0, current_leader_epoch=leader_epoch))
    assert answer.responses[0].partitions[0].error_code == error


def test_sessions_abused(connect: Connect, server: TidelogServer) -> None:
    sessions = server.node.running.broker.fetch_sessions
    with connect() as hostile:
        for _ in range(1_200):  # more than there are places for; those in use are not taken away
            assert hostile.call("Fetch", 12, fetch_request(TOPIC, 0, session_epoch=0)).error_code == 0
        assert len(sessions) <= 1_000
        unknown = hostile.call("Fetch", 12, fetch_request(TOPIC, 0, session_id=-5, session_epoch=9))
        assert unknown.error_code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND


def test_names_that_no_topic_has_are_not_kept_in_a_session(connect: Connect, server: TidelogServer) -> None:
    before = server.node.running.broker.fetch_sessions.partition_count
    answer = ask(connect, "Fetch", 12, fetch_request("n" * 32_000, 0, session_epoch=0))
    assert (answer.session_id, answer.error_code) == (0, 0)
    assert server.node.running.broker.fetch_sessions.partition_count == before


@pytest.mark.parametrize("timestamp", [-(2**63), -7, 0, 2**63 - 1])
def test_offsets_at_impossible_times(connect: Connect, logged: Logged, timestamp: int) -> None:
    wanted = ListOffsetsPartition(partition_index=0, timestamp=timestamp)
    request = ListOffsetsRequest(replica_id=-1, topics=[ListOffsetsTopic(name=TOPIC, partitions=[wanted])])
    assert ask(connect, "ListOffsets", 9, request).topics[0].partitions[0].error_code in (0, 35)
    assert not logged.lines("ERROR")


def test_produce_with_thousands_of_partitions_and_tiny_batches(connect: Connect) -> None:
    tiny = batch(b"")
    data = [PartitionProduceData(index=1 + n % 3, records=tiny) for n in range(5_000)]  # there are 0, 1 and 2
    request = ProduceRequest(acks=1, timeout_ms=1000, topic_data=[TopicProduceData(name=TOPIC, partition_data=data)])
    answers = ask(connect, "Produce", 9, request).responses[0].partition_responses
    assert [one.error_code for one in answers] == [0 if n % 3 < 2 else 3 for n in range(5_000)]


BATCH = batch(b"a", b"b", b"c")
LIES = {
    "wrong CRC": (BATCH[:-1] + b"?", ErrorCode.CORRUPT_MESSAGE),
    "wrong CRC field": (BATCH[:17] + bytes(4) + BATCH[21:], ErrorCode.CORRUPT_MESSAGE),
    "more records than there are": (BATCH[:57] + b"\x7f\xff\xff\xff" + BATCH[61:], ErrorCode.INVALID_RECORD),
    "no records": (BATCH[:57] + bytes(4) + BATCH[61:], ErrorCode.INVALID_RECORD),
    "a negative count": (BATCH[:57] + b"\xff" * 4 + BATCH[61:], ErrorCode.INVALID_RECORD),
    "count and delta that differ": (BATCH[:23] + b"\0\0\0\x09" + BATCH[27:], ErrorCode.INVALID_RECORD),
    "a length past the end": (BATCH[:8] + b"\x7f\xff\xff\xff" + BATCH[12:], ErrorCode.CORRUPT_MESSAGE),
    "a negative length": (BATCH[:8] + b"\xff" * 4 + BATCH[12:], ErrorCode.CORRUPT_MESSAGE),
    "a shorter length": (BATCH[:8] + b"\0\0\0\x32" + BATCH[12:], ErrorCode.INVALID_RECORD),
    "two batches": (BATCH + BATCH, ErrorCode.INVALID_RECORD),
    "half a batch": (BATCH[:40], ErrorCode.CORRUPT_MESSAGE),
    "nothing": (b"", ErrorCode.INVALID_RECORD),
    "magic 1": (BATCH[:16] + b"\1" + BATCH[17:], ErrorCode.INVALID_RECORD),
    "magic 99": (BATCH[:16] + b"\x63" + BATCH[17:], ErrorCode.INVALID_RECORD),
    "codec 7": (BATCH[:21] + b"\0\x07" + BATCH[23:], ErrorCode.UNSUPPORTED_COMPRESSION_TYPE),
    "too large": (batch(bytes(1_100_000)), ErrorCode.MESSAGE_TOO_LARGE),
}


@pytest.mark.parametrize(("records", "error"), LIES.values(), ids=LIES)
def test_batches_that_lie(connect: Connect, logged: Logged, records: bytes, error: ErrorCode) -> None:
    answer = ask(connect, "Produce", 9, produce_request(TOPIC, records, partition=0))
    one = answer.responses[0].partition_responses[0]
    assert (one.error_code, one.base_offset) == (error, -1)
    assert not logged.lines("ERROR")


def test_storm_of_producer_ids(connect: Connect) -> None:
    with connect() as hostile:
        request = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=1)
        ids = [hostile.call("InitProducerId", 4, request).producer_id for _ in range(3_000)]
    assert len(set(ids)) == 3_000


def test_find_coordinator_of_very_many_keys(connect: Connect) -> None:
    keys = [f"group-{n}" for n in range(10_000)]
    answer = ask(connect, "FindCoordinator", 4, FindCoordinatorRequest(coordinator_keys=keys))
    assert len(answer.coordinators) == 10_000


def test_a_giant_client_id(connect: Connect, logged: Logged) -> None:
    with connect() as hostile:
        hostile.send_frame(b"\x00\x03\x00\x01\x00\x00\x00\x07\x7f\xff" + b"x" * 32_767 + b"\x00\x00\x00\x00")
        assert hostile.frame()[:4] == b"\0\0\0\x07"
    assert not logged.lines("WARNING")


def test_clients_that_create_topics_by_asking_for_them(connect: Connect, server: TidelogServer) -> None:
    """As in Kafka that is allowed, where it is not switched off; what bounds it is max.partitions.per.broker."""
    settings, topics = server.node.settings, server.node.running.broker.topics
    for round_ in range(3):
        names = [MetadataRequestTopic(name=f"flood-{round_}-{n}") for n in range(settings.max_partitions_per_broker)]
        assert ask(connect, "Metadata", 9, MetadataRequest(topics=names)) is not None
    count = sum(len(topic.info.partitions) for topic in topics.by_name.values())
    assert count <= settings.max_partitions_per_broker
