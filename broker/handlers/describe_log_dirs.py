"""DescribeLogDirs (key 35): how large partitions are, and where they are (KIP-113).

Versions: 1–5.
- v3+ a top-level error; v4+ total and usable bytes (KIP-827), which an object store does not know: −1; v5+ cordoned
  directories (KIP-1066), which there are none of.

Behaviour: there is one place, the object store, named by its URI. The size of a partition is that of its record batches: what
is in objects from the log start on, by whole ranges, and what is not uploaded yet. Topics and partitions that are not here are left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from protocol.messages.describe_log_dirs import (
    DescribeLogDirsPartition,
    DescribeLogDirsRequest,
    DescribeLogDirsResponse,
    DescribeLogDirsResult,
    DescribeLogDirsTopic,
)

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 35
MIN_VERSION = 1
MAX_VERSION = 5

_SIZES_AT_A_TIME = 100
"""Partitions whose ranges are added up before other work gets its turn."""


def handle(
    broker: Broker, connection: Connection, call: Call, request: DescribeLogDirsRequest
) -> Coroutine[Any, Any, DescribeLogDirsResponse]:
    """Add up what the metadata and the log cache have."""
    return _describe(broker, request)


async def _describe(broker: Broker, request: DescribeLogDirsRequest) -> DescribeLogDirsResponse:
    wanted = None if request.topics is None else {topic.topic: set(topic.partitions) for topic in request.topics}
    topics: list[DescribeLogDirsTopic] = []
    looked_at = 0
    for name in sorted(broker.topics.by_name if wanted is None else wanted):
        topic = broker.topics.by_name.get(name)
        if topic is None:
            continue
        found: list[DescribeLogDirsPartition] = []
        for partition in list(topic.partitions):
            if partition is None or (wanted is not None and partition.index not in wanted[name]):
                continue
            found.append(
                DescribeLogDirsPartition(partition_index=partition.index, partition_size=partition.stream.size_bytes)
            )
            looked_at += 1
            if looked_at % _SIZES_AT_A_TIME == 0:
                await asyncio.sleep(0)
        if found:
            topics.append(DescribeLogDirsTopic(name=name, partitions=found))
    return DescribeLogDirsResponse(results=[DescribeLogDirsResult(log_dir=broker.object_store_uri, topics=topics)])
