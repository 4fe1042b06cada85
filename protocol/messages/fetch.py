"""Fetch (key 1, v4-18): read record batches from an offset on.

- v4 adds isolation levels; v5 the log start offset; v7 fetch sessions (KIP-227); v9 the current leader epoch (KIP-320).
- v10 allows zstd in answers (KIP-110); v11 the client's rack (KIP-392).
- v12 is flexible and adds epochs for truncation (KIP-595); v13 names topics by id (KIP-516).
- v15 moves the replica id into tagged `replica_state`; v16 adds node endpoints (KIP-951); v17 a directory id (KIP-853);
  v18 the follower's high watermark (KIP-1166).
- `records` must be empty, never null, in answers to consumers (KAFKA-18646), hence its default.
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import (
    NULL_UUID,
    Api,
    Message,
    RecordsParts,
    Uuid,
    int8,
    int16,
    int32,
    int64,
    since,
    string,
    tag,
    until,
)

__all__ = [
    "API",
    "AbortedTransaction",
    "EpochEndOffset",
    "FetchPartition",
    "FetchRequest",
    "FetchResponse",
    "FetchTopic",
    "FetchableTopicResponse",
    "ForgottenTopic",
    "LeaderIdAndEpoch",
    "NodeEndpoint",
    "PartitionData",
    "ReplicaState",
    "SnapshotId",
]


class ReplicaState(Message):
    replica_id: int32 = -1
    replica_epoch: int64 = -1


class FetchPartition(Message):
    partition: int32 = 0
    current_leader_epoch: Annotated[int32, since(9)] = -1
    fetch_offset: int64 = 0
    last_fetched_epoch: Annotated[int32, since(12)] = -1
    log_start_offset: Annotated[int64, since(5)] = -1
    partition_max_bytes: int32 = 0
    replica_directory_id: Annotated[Uuid, since(17), tag(0)] = NULL_UUID
    high_watermark: Annotated[int64, since(18), tag(1)] = 2**63 - 1


class FetchTopic(Message):
    topic: Annotated[string, until(12)] = ""
    topic_id: Annotated[Uuid, since(13)] = NULL_UUID
    partitions: Sequence[FetchPartition] = ()


class ForgottenTopic(Message):
    topic: Annotated[string, until(12)] = ""
    topic_id: Annotated[Uuid, since(13)] = NULL_UUID
    partitions: Sequence[int32] = ()


class FetchRequest(Message):
    cluster_id: Annotated[string | None, since(12), tag(0)] = None
    replica_id: Annotated[int32, until(14)] = -1
    replica_state: Annotated[ReplicaState | None, since(15), tag(1)] = None
    max_wait_ms: int32 = 0
    min_bytes: int32 = 0
    max_bytes: int32 = 2**31 - 1
    isolation_level: int8 = 0
    session_id: Annotated[int32, since(7)] = 0
    session_epoch: Annotated[int32, since(7)] = -1
    topics: Sequence[FetchTopic] = ()
    forgotten_topics_data: Annotated[Sequence[ForgottenTopic], since(7)] = ()
    rack_id: Annotated[string, since(11)] = ""


class EpochEndOffset(Message):
    epoch: int32 = -1
    end_offset: int64 = -1


class LeaderIdAndEpoch(Message):
    leader_id: int32 = -1
    leader_epoch: int32 = -1


class SnapshotId(Message):
    end_offset: int64 = -1
    epoch: int32 = -1


class AbortedTransaction(Message):
    producer_id: int64 = 0
    first_offset: int64 = 0


class PartitionData(Message):
    """`aborted_transactions` is null for read_uncommitted, as Kafka sends it. `records` is one buffer or a list of
    them."""

    partition_index: int32 = 0
    error_code: int16 = 0
    high_watermark: int64 = 0
    last_stable_offset: int64 = -1
    log_start_offset: Annotated[int64, since(5)] = -1
    diverging_epoch: Annotated[EpochEndOffset | None, since(12), tag(0)] = None
    current_leader: Annotated[LeaderIdAndEpoch | None, since(12), tag(1)] = None
    snapshot_id: Annotated[SnapshotId | None, since(12), tag(2)] = None
    aborted_transactions: Sequence[AbortedTransaction] | None = None
    preferred_read_replica: Annotated[int32, since(11)] = -1
    records: RecordsParts | None = b""


class FetchableTopicResponse(Message):
    topic: Annotated[string, until(12)] = ""
    topic_id: Annotated[Uuid, since(13)] = NULL_UUID
    partitions: Sequence[PartitionData] = ()


class NodeEndpoint(Message):
    node_id: int32 = 0
    host: string = ""
    port: int32 = 0
    rack: string | None = None


class FetchResponse(Message):
    throttle_time_ms: int32 = 0
    error_code: Annotated[int16, since(7)] = 0
    session_id: Annotated[int32, since(7)] = 0
    responses: Sequence[FetchableTopicResponse] = ()
    node_endpoints: Annotated[Sequence[NodeEndpoint], since(16), tag(0)] = ()


API = Api(
    key=1,
    name="Fetch",
    min_version=4,
    max_version=18,
    flexible_since=12,
    request=FetchRequest,
    response=FetchResponse,
)
