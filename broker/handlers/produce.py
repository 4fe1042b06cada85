"""Produce (key 0): append one record batch to each partition.

Versions: 3–11 are served, 0 is advertised as the minimum.
- Advertising 3 would make librdkafka before 2.8.1 send uncompressed (KAFKA-18659); 0–2 close the connection.
- v7+ may carry zstd (KIP-110); v8+ answers say more of an error (KIP-467); v10+ name the leader (KIP-951).
- v12 adds partitions to transactions (KIP-890) and v13 names topics by id (KIP-516): with transactions, not yet.

A refusal names the broker that has the partition, or is about to, and where that is (KIP-951); a batch for a partition that is about to be
served here waits a moment for it (`broker/arrivals.py`). A batch that lacks its predecessor, since that was refused on the same connection, is
refused alike (`broker/refused_batches.py`).

Behaviour: requests are submitted in this callback, without a task or a future, and acknowledged in order when the WAL
says that they are durable. acks=1 and acks=all both mean that; acks=0 gets no response, and on any error its
connection is closed, as in Kafka. A request that finds no room in the log is submitted as far as it goes, and continues
where it stopped; so does one whose keys take long to check. Partitions are independent of each other: one may fail and the next be appended.

Deviations: `timeout_ms` is not used, since there are no followers to wait for; back-pressure holds the request
in the socket instead. Not done: transactions (error 48 for a transactional batch).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.ack_queue import AckQueue, PendingProduce
from broker.broker import Broker
from broker.connection import CloseConnection
from broker.endpoints import endpoint_of
from broker.errors import KafkaError, code_of
from broker.partition import UNTREATED, AlreadyAppended, Partition
from broker.producer_state import InvalidProducerEpoch, OutOfOrderSequence
from broker.refused_batches import RefusedBatches
from broker.topics import Topic
from protocol.errors import ErrorCode, ProtocolError
from protocol.messages.produce import (
    LeaderIdAndEpoch,
    NodeEndpoint,
    PartitionProduceData,
    PartitionProduceResponse,
    ProduceRequest,
    TopicProduceResponse,
)
from s3stream.errors import StorageError
from wal.errors import WalError

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["ADVERTISED_MIN_VERSION", "API_KEY", "MAX_VERSION", "MIN_VERSION", "submit"]

API_KEY = 0
MIN_VERSION = 3
MAX_VERSION = 11
ADVERTISED_MIN_VERSION = 0

_REFUSALS = (ProtocolError, KafkaError, StorageError, WalError, InvalidProducerEpoch, OutOfOrderSequence)
"""What a batch can be refused with; anything else is a bug and ends the connection."""


def submit(broker: Broker, connection: Connection, version: int, correlation_id: int, request: ProduceRequest) -> bool:
    """Append what the request carries; False: no room, call again with the same request (its views may have moved)."""
    acks = connection.acks
    quiet = request.acks == 0
    pending = acks.stalled
    metrics = broker.metrics
    if pending is None:
        pending = PendingProduce(version, correlation_id, metrics.arrived)
        if not quiet:
            acks.add(pending)
    else:
        acks.stalled = None
        pending.parked = None
    now_ms = broker.now_ms()
    on_done = None if quiet else acks.done
    topics = broker.topics.by_name
    takes = broker.serving.takes_records
    refused = acks.refused
    produced = connection.produced
    assert produced is not None, "its zone is known since its first request"
    seen = 0
    for at, topic_data in enumerate(request.topic_data):
        name = topic_data.name
        topic = topics.get(name)
        responses = _responses_of(pending, at, name)
        for data in topic_data.partition_data:
            seen += 1
            if seen <= pending.resume_at:
                continue
            response = PartitionProduceResponse(index=data.index)
            try:
                partition = _partition_for(request, topic, name, data.index, takes)
                treatment, treated = pending.treatment, None
                if treatment is not None:
                    if not treatment.done:
                        return _stall(acks, pending, seen)
                    pending.treatment = None
                    treated = treatment.outcome()
                records = data.records or b""
                base_offset, append_time = partition.append(records, version, now_ms, on_done, treated)
                if base_offset < 0:
                    wanted = partition.config.treatment
                    if base_offset == UNTREATED and wanted is not None:
                        treatment = broker.record_walks.treat(records, wanted, connection.server.start_task)
                    pending.treatment = treatment
                    return _stall(acks, pending, seen)
                if refused:
                    refused.appended(name, data.index)
                response.base_offset = base_offset
                response.log_append_time_ms = append_time
                stream = partition.stream
                response.log_start_offset = stream.log_start_offset
                traffic = partition.traffic
                size = len(records)
                partition.bytes_in += size
                produced.bytes_in += size
                traffic.bytes_in += size
                traffic.records_in += stream.next_offset - base_offset
                pending.appended.append(response)
                pending.outstanding += 1
            except AlreadyAppended as duplicate:
                response.base_offset = duplicate.batch.base_offset
                response.log_append_time_ms = duplicate.batch.log_append_time_ms
                response.log_start_offset = partition.stream.log_start_offset
                if not quiet and not partition.is_durable(duplicate.batch):
                    partition.when_durable(duplicate.batch, acks.wait_duplicate(pending, response))
            except _REFUSALS as found:
                error: Exception = found
                if refused:
                    error = _for_its_cause(refused, name, data, found)
                if topic is not None and _may_wait(broker, connection, pending, topic, data, error):
                    return _stall(acks, pending, seen)
                if quiet:
                    metrics.produce.errors[code_of(error)] += 1
                    raise CloseConnection(f"Produce with acks=0 failed: {error}") from error
                _refuse(broker, connection, pending, response, topic, error)
                refused.add(name, data.index, data.records or b"", code_of(error))
            responses.append(response)
    if quiet:
        metrics.produce.duration.observe(metrics.clock() - pending.started)
    else:
        acks.submitted(pending)
    return True


def _for_its_cause(refused: RefusedBatches, name: str, data: PartitionProduceData, error: Exception) -> Exception:
    """How to refuse a batch: one whose predecessor is missing as that was, if it was refused here."""
    if not isinstance(error, OutOfOrderSequence):
        return error
    code = refused.account_for(name, data.index, data.records or b"")
    return error if code is None else KafkaError(code, f"{error}, since what is missing was refused; send that first")


def _stall(acks: AckQueue, pending: PendingProduce, seen: int) -> bool:
    """Go on later, with the partition that was seen last."""
    pending.resume_at = seen - 1
    acks.stalled = pending
    return False


def _partition_for(request: ProduceRequest, topic: Topic | None, name: str, index: int, takes: bool) -> Partition:
    if request.acks not in (-1, 0, 1):
        raise KafkaError(ErrorCode.INVALID_REQUIRED_ACKS, f"acks={request.acks} is none of -1, 0 and 1")
    if request.transactional_id is not None:
        raise KafkaError(ErrorCode.INVALID_TXN_STATE, "this broker version does not support transactions")
    if topic is None or not 0 <= index < len(topic.partitions):
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"{name}-{index} does not exist")
    if topic.is_internal:
        raise KafkaError(ErrorCode.INVALID_TOPIC_EXCEPTION, f"{name} is written by the broker only")
    partition = topic.partitions[index]
    if partition is None:
        raise topic.not_open(index)
    if not takes:
        raise topic.no_lease(index)
    return partition


def _responses_of(pending: PendingProduce, at: int, name: str) -> list[PartitionProduceResponse]:
    """The list that answers for the topic at a place in the request, which a request that waited for room has already."""
    if at < len(pending.topics):
        known = pending.topics[at].partition_responses
        assert isinstance(known, list)
        return known
    responses: list[PartitionProduceResponse] = []
    pending.topics.append(TopicProduceResponse(name=name, partition_responses=responses))
    return responses


def _may_wait(
    broker: Broker,
    connection: Connection,
    pending: PendingProduce,
    topic: Topic,
    data: PartitionProduceData,
    error: BaseException,
) -> bool:
    """Whether a refused batch may wait, since its partition is about to be served here: then its connection is resumed."""
    if pending.has_waited or code_of(error) != ErrorCode.NOT_LEADER_OR_FOLLOWER:
        return False
    index = data.index
    if connection.acks.refused.follows(topic.name, index, data.records or b""):
        return False
    if not 0 <= index < len(topic.partitions) or not broker.arrivals.expects(topic, index):
        return False
    partition = topic.partitions[index]
    if partition is not None:
        broker.partitions.prefer(partition)

    def wake(in_time: bool) -> None:
        pending.parked = None
        pending.has_waited = not in_time
        connection.resume()

    pending.parked = broker.arrivals.wait(topic, index, wake)
    return True


def _refuse(
    broker: Broker,
    connection: Connection,
    pending: PendingProduce,
    response: PartitionProduceResponse,
    topic: Topic | None,
    error: BaseException,
) -> None:
    code = code_of(error)
    response.error_code = code
    response.base_offset = -1
    response.error_message = str(error)
    if code == ErrorCode.NOT_LEADER_OR_FOLLOWER and topic is not None:
        leader, leader_epoch = topic.next_leader(response.index)
        endpoint = endpoint_of(broker, connection.listener, leader)
        if endpoint is not None:  # KIP-951: the client need not ask for metadata
            response.current_leader = LeaderIdAndEpoch(leader_id=leader, leader_epoch=leader_epoch)
            if all(known.node_id != leader for known in pending.node_endpoints):
                node, address = endpoint
                pending.node_endpoints.append(
                    NodeEndpoint(node_id=leader, host=address.host, port=address.port, rack=node.rack or None)
                )
    broker.metrics.produce.errors[code] += 1
