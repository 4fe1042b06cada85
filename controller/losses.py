"""What giving up the WAL of a dead node would cost, as far as that is known: what the node reported last, held against what objects have. Pure.

Always true:
- A number is of something that surely was: what a report says was acknowledged, and is in no object now, is lost with the WAL. It is a lower
  bound, since what the node acknowledged after its report nobody else knows.
- Where a report does not name all its partitions, what objects got after it cannot be held against those: then only what it said is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.records import NodeRegistered, Unuploaded
from controller.tables import NodeStatus, StreamState, Tables
from s3stream.metadata import StreamId

__all__ = ["KnownLoss", "StreamLoss", "known_loss", "reported_end_offset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLoss:
    """Acknowledged records of one stream that only a WAL holds, as many as offsets."""

    base_offset: int
    """What comes before is in objects."""
    end_offset: int
    """Exclusive end of what was reported."""
    size_bytes: int
    """-1: not known exactly, since objects got some of them after the report."""

    @property
    def record_count(self) -> int:
        return self.end_offset - self.base_offset


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLoss:
    """What is known of what the WAL of a registered node holds alone."""

    node: NodeRegistered
    status: NodeStatus
    held: Unuploaded | None
    """Its last report, as it was made; None: nobody who led had one."""
    before_silence_ms: int
    """How long before its last sign of life; -1: not known."""
    streams: Mapping[StreamId, StreamLoss]
    """Those that the report names, and that lose something."""

    @property
    def names_all(self) -> bool:
        """Whether the report named all partitions that it is about, so that `record_count` is exact as of then."""
        return self.held is not None and len(self.held.streams) == self.held.stream_count

    @property
    def record_count(self) -> int | None:
        """Reported records that are in no object now: so many are lost with the WAL, or more. None: not known."""
        return sum(loss.record_count for loss in self.streams.values()) if self.names_all else None

    @property
    def size_bytes(self) -> int | None:
        """Of these; None: not known."""
        if not self.names_all or any(loss.size_bytes < 0 for loss in self.streams.values()):
            return None
        return sum(loss.size_bytes for loss in self.streams.values())


def known_loss(tables: Tables, wal_id: str) -> KnownLoss | None:
    """What is known of a WAL; None where it is that of no registered node."""
    node = next((node for node in tables.nodes.values() if node.wal_id == wal_id), None)
    if node is None:
        return None
    health = tables.node_health.get(node.node_id)
    held = None if health is None else health.held
    return KnownLoss(
        node=node,
        status=tables.node_status(node.node_id),
        held=held,
        before_silence_ms=-1 if health is None else health.held_before_silence_ms,
        streams={} if held is None else _streams(tables, wal_id, held),
    )


def _streams(tables: Tables, wal_id: str, held: Unuploaded) -> dict[StreamId, StreamLoss]:
    found: dict[StreamId, StreamLoss] = {}
    for each in held.streams:
        stream = tables.streams.get(each.stream_id)
        if stream is None or stream.wal_id != wal_id or stream.committed_end_offset >= each.end_offset:
            continue
        base_offset = max(each.base_offset, stream.committed_end_offset)
        found[each.stream_id] = StreamLoss(
            base_offset=base_offset,
            end_offset=each.end_offset,
            size_bytes=each.size_bytes if base_offset == each.base_offset else -1,
        )
    return found


def reported_end_offset(stream: StreamState, loss: KnownLoss | None) -> int:
    """An offset that no reported record of a stream is at or past (I2): the exact end where the report names it."""
    if loss is None or loss.held is None:
        return stream.committed_end_offset
    known = loss.streams.get(stream.stream_id)
    if known is not None:
        return known.end_offset
    if loss.names_all:
        return stream.committed_end_offset
    return stream.committed_end_offset + loss.held.record_count  # all of them could be of this one
