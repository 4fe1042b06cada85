"""What verification tells: findings, each of a named kind with its advice, and what it counted."""

from __future__ import annotations

import enum

from broker.inspect.rows import Row, age, offsets, plural, size, when

__all__ = ["Finding", "Kind", "MultipartRow", "SummaryRow", "UncheckedRow", "UnreferencedRow"]


class Kind(enum.StrEnum):
    """What can be wrong. Names are stable: scripts may match them."""

    CLUSTER_MARKER = "cluster-marker"
    LEADER = "leader"
    FLOOR = "floor"
    LOG_ENTRY_MISSING = "log-entry-missing"
    LOG_ENTRY_DAMAGED = "log-entry-damaged"
    SNAPSHOT_DAMAGED = "snapshot-damaged"
    REPLAY = "replay"
    METADATA_INVARIANT = "metadata-invariant"
    OBJECT_MISSING = "object-missing"
    OBJECT_SIZE = "object-size"
    OBJECT_FOREIGN = "object-foreign"
    OBJECT_FOOTER = "object-footer"
    OBJECT_INDEX = "object-index"
    OBJECT_BLOCK = "object-block"
    OBJECT_BODY = "object-body"
    OBJECT_RANGES = "object-ranges"
    BATCHES = "batches"
    STATE = "state"
    OFFLINE = "offline"
    WAL_DAMAGED = "wal-damaged"
    NOT_COLLECTED = "not-collected"


_RESTORE_OBJECT = "restore this key from the bucket's versions or a backup; nothing else holds what was in it once the WAL was trimmed"
_RESTORE_METADATA = "restore this key from the bucket's versions or a backup, with all brokers stopped"
_REPORT = "please report it with the output of `tidelog inspect metadata --entries --json`: only a defect does this"

ADVICE = {
    Kind.CLUSTER_MARKER: _RESTORE_METADATA,
    Kind.LEADER: _RESTORE_METADATA,
    Kind.FLOOR: _RESTORE_METADATA,
    Kind.LOG_ENTRY_MISSING: "restore these keys from the bucket's versions or a backup, and find out what else deletes there",
    Kind.LOG_ENTRY_DAMAGED: _RESTORE_METADATA,
    Kind.SNAPSHOT_DAMAGED: _RESTORE_METADATA,
    Kind.REPLAY: _REPORT,
    Kind.METADATA_INVARIANT: _REPORT,
    Kind.OBJECT_MISSING: f"{_RESTORE_OBJECT}; find out what else deletes there (a lifecycle rule?)",
    Kind.OBJECT_SIZE: _RESTORE_OBJECT,
    Kind.OBJECT_FOREIGN: "the objects were exchanged: copy each back to its own key",
    Kind.OBJECT_FOOTER: _RESTORE_OBJECT,
    Kind.OBJECT_INDEX: _RESTORE_OBJECT,
    Kind.OBJECT_BLOCK: _RESTORE_OBJECT,
    Kind.OBJECT_BODY: _RESTORE_OBJECT,
    Kind.OBJECT_RANGES: _REPORT,
    Kind.BATCHES: _REPORT,
    Kind.STATE: _REPORT,
    Kind.OFFLINE: "`tidelog inspect wal` tells what is missing; repair that WAL and start its node again, or give it up with `tidelog wal abandon`",
    Kind.WAL_DAMAGED: "restore these keys from the bucket's versions, and start the node again, or give the WAL up with `tidelog wal abandon`",
    Kind.NOT_COLLECTED: "see the collector's warnings in the brokers' logs; costs space, and nothing else",
}


class Finding(Row, frozen=True, kw_only=True):
    """One thing that is wrong. Fields that do not apply are None."""

    what: Kind
    problem: str
    key: str | None = None
    object_id: int | None = None
    stream_id: int | None = None
    partition: str | None = None
    base_offset: int | None = None
    end_offset: int | None = None
    """Exclusive."""
    advice: str = ""

    def text(self) -> str:
        place = []
        if self.object_id is not None:
            place.append(f"object {self.object_id} ({self.key})")
        elif self.key is not None:
            place.append(self.key)
        if self.stream_id is not None:
            place.append(f"stream {self.stream_id} {self.partition or ''}".rstrip())
        if self.base_offset is not None and self.end_offset is not None:
            place.append(f"offsets {offsets(self.base_offset, self.end_offset)}")
        return f"FINDING {self.what}: {', '.join(place)}: {self.problem}\n  what to do: {self.advice}"


class UnreferencedRow(Row, frozen=True, kw_only=True):
    """An object that nothing needs (any more): no error until its bound has passed."""

    object_id: int
    key: str
    status: str
    size_bytes: int
    age_ms: int
    """Since it was un-referenced, or put where it never was referenced."""

    def text(self) -> str:
        return f"unreferenced: object {self.object_id} ({self.key}), {size(self.size_bytes)}, {self.status} for {age(self.age_ms)}"


class MultipartRow(Row, frozen=True, kw_only=True):
    """An upload that was begun and not completed: under way, or left by a crash."""

    key: str
    age_ms: int

    def text(self) -> str:
        return f"unfinished upload: {self.key}, begun {age(self.age_ms)} ago"


class UncheckedRow(Row, frozen=True, kw_only=True):
    """Something that could not be checked."""

    message: str

    def text(self) -> str:
        return f"not checked: {self.message}"


class SummaryRow(Row, frozen=True, kw_only=True):
    """The last row."""

    uri: str
    cluster_id: str
    next_index: int
    """First metadata entry that was not looked at."""
    at_ms: int
    quick: bool
    entries: int
    snapshots: int
    replayed_from: int
    """Index of the snapshot that the replay began with; -1: it began with an empty state."""
    compared_snapshots: int
    partitions: int
    objects: int
    blocks: int
    batches: int
    read_bytes: int
    unreferenced_objects: int
    unreferenced_bytes: int
    unfinished_uploads: int
    unchecked: int
    findings: int

    def text(self) -> str:
        begun = "the beginning" if self.replayed_from < 0 else f"the snapshot as of {self.replayed_from}"
        blocks = (
            "block bodies left out (--quick)"
            if self.quick
            else f"{plural(self.blocks, 'block')}, {plural(self.batches, 'batch', 'batches')}"
        )
        outcome = plural(self.findings, "finding") if self.findings else "no findings"
        outcome = f"{outcome}; {self.unchecked} not checked" if self.unchecked else outcome
        return (
            f"{self.uri}, cluster {self.cluster_id}, as of {when(self.at_ms)}, before entry {self.next_index}\n"
            f"metadata: {plural(self.entries, 'entry', 'entries')} replayed from "
            f"{begun}, {plural(self.snapshots, 'snapshot')} read, {self.compared_snapshots} equal to the log\n"
            f"data: {plural(self.partitions, 'partition')}, {plural(self.objects, 'object')}, {blocks}, "
            f"{size(self.read_bytes)} read\n"
            f"unreferenced: {plural(self.unreferenced_objects, 'object')} of {size(self.unreferenced_bytes)}, "
            f"{plural(self.unfinished_uploads, 'unfinished upload')}\n"
            f"{'' if self.findings or self.unchecked else 'clean: '}{outcome}"
        )
