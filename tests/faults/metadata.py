"""What the metadata log in a bucket says, read by none of the broker's code: keys, heads and records as docs/architecture.md and
controller/entry.py describe them, and the one rule by which entries of deposed leaders count no more.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from crc32c import crc32c

from tests.stores.s3_server import S3Server

__all__ = ["LogEntry", "counted", "leaders", "read_log", "topics_created"]

_HEAD = struct.Struct(">4sBIQQ16sI")
_LEADER_CHANGED, _TOPIC_CREATED = 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One object below metadata/log."""

    metadata_version: int
    index: int
    controller_epoch: int
    nonce: bytes
    records: Sequence[Any]
    """Each a list whose first item says what it is."""


def read_log(server: S3Server, bucket: str, prefix: str) -> list[LogEntry]:
    """All entries, from the first. Raises AssertionError where one is missing, damaged or in the wrong place."""
    found: list[LogEntry] = []
    for key in sorted(server.keys(bucket, f"{prefix}/metadata/log/")):
        data = server.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        magic, _, version, index, controller_epoch, nonce, crc = _HEAD.unpack_from(data)
        head, body = data[: _HEAD.size - 4], data[_HEAD.size :]
        assert magic == b"TLML", key
        assert crc == crc32c(body, crc32c(head)), key
        assert index == len(found) == int(key.rpartition("/")[2]), f"{key}: the log has no gap"
        records = msgspec.msgpack.decode(body)
        found.append(
            LogEntry(
                metadata_version=version,
                index=index,
                controller_epoch=controller_epoch,
                nonce=nonce,
                records=records,
            )
        )
    assert len({entry.nonce for entry in found}) == len(found), "each was written by one attempt"
    return found


def counted(log: Sequence[LogEntry]) -> list[LogEntry]:
    """Those that change anything: written under the newest controller epoch that took office before, or by taking it."""
    newest = 0
    found: list[LogEntry] = []
    for entry in log:
        if entry.controller_epoch < newest:
            continue
        if entry.controller_epoch > newest:
            kind, *values = entry.records[0]
            assert (kind, values[0]) == (_LEADER_CHANGED, entry.controller_epoch), "an office begins with its entry"
        newest = entry.controller_epoch
        found.append(entry)
    return found


def leaders(entries: Sequence[LogEntry]) -> dict[int, list[str]]:
    """Addresses that took office, by controller epoch."""
    found: dict[int, list[str]] = {}
    for entry in entries:
        for kind, *values in entry.records:
            if kind == _LEADER_CHANGED:
                found.setdefault(values[0], []).append(values[1])
    return found


def topics_created(entries: Sequence[LogEntry]) -> list[str]:
    """Names, in the order of the log."""
    return [values[1] for entry in entries for kind, *values in entry.records if kind == _TOPIC_CREATED]
