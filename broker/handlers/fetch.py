"""Fetch (key 1): read record batches from an offset on.

Versions: 4–18.
- v7+ fetch sessions (KIP-227); v9+ the client's leader epoch is checked (KIP-320); v10+ may carry zstd (KIP-110).
- v11+ a rack: who reads what only objects hold is sent to a broker of its zone, and back at their end (KIP-392, `zone_reads.py`).
- v12+ the answer to a stale leader names the current one (tagged); v13+ topics by id, unknown ones are error 100 (KIP-516).
- v16+ names the leader's address as well (KIP-951).

Behaviour: see `delayed_fetch.py`. Whole batches, as they are stored: the first may begin below the asked offset,
clients skip (KIP-74). `read_committed` equals `read_uncommitted` until there are transactions.

A batch of zstd for a client older than v10 is error 76: batches are never converted.

Deviations: requests of followers (replica id ≥ 0) are served like those of consumers. Nobody waits longer than five
minutes, and a fetch of very many partitions is not made to wait while others of that kind do.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

from broker.broker import Broker, Call
from broker.delayed_fetch import DelayedFetch, FetchedPartition
from broker.endpoints import endpoint_of
from broker.errors import code_of
from broker.fetch_session import (
    FetchContext,
    FetchSessionIdNotFound,
    FetchSessionTopicIdError,
    InvalidFetchSessionEpoch,
    SessionPartition,
    TopicKey,
)
from broker.partition import Partition
from broker.zones import client_rack, where_is
from protocol.errors import ErrorCode
from protocol.messages.fetch import (
    FetchableTopicResponse,
    FetchRequest,
    FetchResponse,
    LeaderIdAndEpoch,
    NodeEndpoint,
    PartitionData,
)

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.topics import Topic
    from s3stream.log_cache import CacheBlock

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 1
MIN_VERSION = 4
MAX_VERSION = 18

_TOPIC_IDS_SINCE = 13
_ZSTD_SINCE = 10
_RACK_SINCE = 11
_ZSTD = 4
_JOIN_BELOW_BYTES = 16 << 10
"""Batches smaller than this on average are joined into one buffer (186 against 991 MB/s for batches of 170 bytes)."""


def handle(broker: Broker, connection: Connection, call: Call, request: FetchRequest) -> FetchResponse | None:
    """Answer at once, or when data comes or the time is up."""
    by_id = call.version >= _TOPIC_IDS_SINCE
    try:
        context = broker.fetch_sessions.context(
            session_id=request.session_id,
            session_epoch=request.session_epoch,
            uses_topic_ids=by_id,
            partitions=[
                SessionPartition(
                    topic=topic.topic_id if by_id else topic.topic,
                    partition=partition.partition,
                    fetch_offset=partition.fetch_offset,
                    max_bytes=partition.partition_max_bytes,
                    current_leader_epoch=partition.current_leader_epoch,
                )
                for topic in request.topics
                for partition in topic.partitions
            ],
            forgotten=[
                (topic.topic_id if by_id else topic.topic, partition)
                for topic in request.forgotten_topics_data
                for partition in topic.partitions
            ],
        )
    except (FetchSessionIdNotFound, InvalidFetchSessionEpoch, FetchSessionTopicIdError) as error:
        return FetchResponse(error_code=code_of(error))

    def start_task(fetch: DelayedFetch) -> asyncio.Task[None]:
        task = connection.server.start_task(fetch.read_cold())
        task.add_done_callback(connection.check_task)
        return task

    def complete(fetch: DelayedFetch) -> None:
        response, block = _response(broker, call, context, reader, fetch, connection.server.may_copy(fetch.total_bytes))
        call.started += fetch.waited_s
        connection.finish(call.encode_counted(response), block)

    rack = client_rack(request.rack_id, call.client_id) if call.version >= _RACK_SINCE else ""
    reader = Reader(rack, call.listener.name, connection.peer)
    resolve = partial(_resolve, broker, by_id, reader)
    fetch = DelayedFetch(
        entries=[resolve(wanted) for wanted in context.partitions],
        resolve=resolve,
        await_arrival=broker.arrivals.wait,
        max_bytes=min(request.max_bytes, broker.settings.fetch_max_bytes),
        allowance_bytes=lambda: connection.server.response_allowance_bytes,
        min_bytes=request.min_bytes,
        max_wait_ms=request.max_wait_ms,
        max_cold_wait_ms=broker.settings.remote_fetch_max_wait_ms,
        complete=complete,
        start_task=start_task,
        waiting=broker.waiting_fetches,
        metrics=broker.metrics,
    )
    if fetch.start():
        response, block = _response(broker, call, context, reader, fetch, connection.server.may_copy(fetch.total_bytes))
        connection.respond(call.encode_counted(response), block)
    else:
        broker.metrics.fetches_delayed += 1
        connection.begin(fetch.cancel)
    return None


class Reader(NamedTuple):
    """Who fetches."""

    rack: str
    """Its zone; empty: it does not say."""
    listener: str
    """Where it came in."""
    client: str
    """Its address."""


def _resolve(broker: Broker, by_id: bool, reader: Reader, wanted: SessionPartition) -> FetchedPartition:
    """Find the partition, and whatever speaks against reading it."""
    key: TopicKey = wanted.topic
    topic = broker.topics.by_id.get(key) if isinstance(key, bytes) else broker.topics.by_name.get(key)
    if topic is None:
        error = ErrorCode.UNKNOWN_TOPIC_ID if by_id else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        return FetchedPartition(wanted=wanted, partition=None, error=error)
    if not 0 <= wanted.partition < len(topic.partitions):
        return FetchedPartition(wanted=wanted, partition=None, error=ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)
    if not broker.serving.serves:
        return FetchedPartition(wanted=wanted, partition=None, error=topic.no_lease(wanted.partition).error_code)
    partition = topic.partitions[wanted.partition]
    if partition is None:
        return _resolve_elsewhere(broker, reader, topic, wanted)
    error = partition.check_epoch(wanted.current_leader_epoch)
    found = FetchedPartition(wanted=wanted, partition=partition, error=error)
    if reader.rack and not error:
        found.preferred = broker.zone_reads.preferred(
            partition, reader.rack, wanted.fetch_offset, listener=reader.listener, client=reader.client
        )
    return found


def _resolve_elsewhere(broker: Broker, reader: Reader, topic: Topic, wanted: SessionPartition) -> FetchedPartition:
    """A partition that is not open here: on its way, or another broker's, whose objects a consumer of this zone is given."""
    if broker.arrivals.expects(topic, wanted.partition):
        error = topic.not_open(wanted.partition).error_code
        return FetchedPartition(wanted=wanted, partition=None, error=error, arriving=topic)
    replica = broker.zone_reads.replica(
        topic, wanted.partition, reader.rack, wanted.fetch_offset, wanted.current_leader_epoch
    )
    if replica is not None:
        return FetchedPartition(wanted=wanted, partition=replica)
    return FetchedPartition(wanted=wanted, partition=None, error=topic.not_open(wanted.partition).error_code)


def _response(
    broker: Broker, call: Call, context: FetchContext, reader: Reader, fetch: DelayedFetch, may_copy: bool
) -> tuple[FetchResponse, CacheBlock | None]:
    """The response, and the oldest block of the log cache that it holds views of."""
    if not broker.serving.serves:  # it may have waited, or read from objects, since it was asked
        fetch.refuse(ErrorCode.NOT_LEADER_OR_FOLLOWER)
    topics: dict[TopicKey, list[PartitionData]] = {}
    endpoints: dict[int, NodeEndpoint] = {}
    oldest: CacheBlock | None = None
    broker.metrics.fetched_bytes[where_is(reader.rack, broker.zone_reads.rack)] += fetch.total_bytes
    for entry in fetch.entries:
        data = _partition_data(broker, call, entry, reader, may_copy, endpoints)
        if context.must_answer(
            entry.wanted,
            has_records=entry.size_bytes > 0,
            error=data.error_code != 0 or data.preferred_read_replica >= 0,
            high_watermark=data.high_watermark,
            log_start_offset=data.log_start_offset,
        ):
            topics.setdefault(entry.wanted.topic, []).append(data)
        block = entry.block
        if block is not None and (oldest is None or block.start_position < oldest.start_position):
            oldest = block
    responses = [
        FetchableTopicResponse(topic_id=topic, partitions=partitions)
        if isinstance(topic, bytes)
        else FetchableTopicResponse(topic=topic, partitions=partitions)
        for topic, partitions in topics.items()
    ]
    response = FetchResponse(
        session_id=context.session_id, responses=responses, node_endpoints=list(endpoints.values())
    )
    return response, oldest


def _partition_data(
    broker: Broker,
    call: Call,
    entry: FetchedPartition,
    reader: Reader,
    may_copy: bool,
    endpoints: dict[int, NodeEndpoint],
) -> PartitionData:
    index = entry.wanted.partition
    partition = entry.partition
    error = entry.error
    if partition is not None and not error and partition.stream.withheld is not None:  # since it was looked at
        error = code_of(partition.stream.withheld)
    if partition is None or error:
        call.count_error(error)
        data = PartitionData(partition_index=index, error_code=error, high_watermark=-1, records=[])
        if reader.rack and error == ErrorCode.NOT_LEADER_OR_FOLLOWER:
            broker.metrics.fetch_redirects["leader"] += 1
        if error in (ErrorCode.NOT_LEADER_OR_FOLLOWER, ErrorCode.FENCED_LEADER_EPOCH):
            _name_leader(broker, call, entry, data, endpoints)
        return data
    if call.version < _ZSTD_SINCE and any(payload[22] & 7 == _ZSTD for payload in entry.payloads):
        entry.block = None
        call.count_error(ErrorCode.UNSUPPORTED_COMPRESSION_TYPE)
        return PartitionData(
            partition_index=index, error_code=ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, high_watermark=-1, records=[]
        )
    payloads = cast("list[bytes | memoryview]", entry.payloads)
    small = len(payloads) > 1 and entry.size_bytes < _JOIN_BELOW_BYTES * len(payloads)
    if may_copy and (small or (entry.block is not None and not broker.storage.may_pin(entry.block))):
        # Many small buffers cost the socket more than one copy. And where appends will soon want the memory, a copy, counted in
        # the send budget, lets a slow consumer keep its connection.
        payloads = [b"".join(payloads)]
        entry.block = None
    if isinstance(partition, Partition):  # what others lead is not this node's to give away
        partition.bytes_out += entry.size_bytes
    partition.traffic.bytes_out += entry.size_bytes
    if entry.preferred >= 0:
        broker.metrics.fetch_redirects["zone"] += 1
    return PartitionData(
        partition_index=index,
        preferred_read_replica=entry.preferred,
        high_watermark=partition.high_watermark,
        last_stable_offset=partition.last_stable_offset,
        log_start_offset=partition.log_start_offset,
        records=payloads,
    )


def _name_leader(
    broker: Broker, call: Call, entry: FetchedPartition, data: PartitionData, endpoints: dict[int, NodeEndpoint]
) -> None:
    """Tell who has the partition, or is about to, and where that is (KIP-951)."""
    key = entry.wanted.topic
    topic = broker.topics.by_id.get(key) if isinstance(key, bytes) else broker.topics.by_name.get(key)
    if topic is None:
        return
    leader, leader_epoch = topic.next_leader(entry.wanted.partition)
    endpoint = endpoint_of(broker, call.listener, leader)
    if endpoint is not None:
        node, address = endpoint
        data.current_leader = LeaderIdAndEpoch(leader_id=leader, leader_epoch=leader_epoch)
        endpoints[leader] = NodeEndpoint(node_id=leader, host=address.host, port=address.port, rack=node.rack or None)
