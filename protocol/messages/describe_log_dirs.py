"""DescribeLogDirs (key 35, v1-5): how large partitions are, and where they are (KIP-113).

- v3 has an error of its own; v4 total and usable bytes (KIP-827); v5 tells cordoned directories (KIP-1066).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, boolean, int16, int32, int64, since, string

__all__ = [
    "API",
    "DescribableLogDirTopic",
    "DescribeLogDirsPartition",
    "DescribeLogDirsRequest",
    "DescribeLogDirsResponse",
    "DescribeLogDirsResult",
    "DescribeLogDirsTopic",
]


class DescribableLogDirTopic(Message):
    topic: string = ""
    partitions: Sequence[int32] = ()


class DescribeLogDirsRequest(Message):
    topics: Sequence[DescribableLogDirTopic] | None = ()


class DescribeLogDirsPartition(Message):
    partition_index: int32 = 0
    partition_size: int64 = 0
    offset_lag: int64 = 0
    is_future_key: boolean = False


class DescribeLogDirsTopic(Message):
    name: string = ""
    partitions: Sequence[DescribeLogDirsPartition] = ()


class DescribeLogDirsResult(Message):
    error_code: int16 = 0
    log_dir: string = ""
    topics: Sequence[DescribeLogDirsTopic] = ()
    total_bytes: Annotated[int64, since(4)] = -1
    usable_bytes: Annotated[int64, since(4)] = -1
    is_cordoned: Annotated[boolean, since(5)] = False


class DescribeLogDirsResponse(Message):
    throttle_time_ms: int32 = 0
    error_code: Annotated[int16, since(3)] = 0
    results: Sequence[DescribeLogDirsResult] = ()


API = Api(
    key=35,
    name="DescribeLogDirs",
    min_version=1,
    max_version=5,
    flexible_since=2,
    request=DescribeLogDirsRequest,
    response=DescribeLogDirsResponse,
)
