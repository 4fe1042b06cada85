"""The vocabulary in which messages are declared.

A message is a `Message` subclass whose annotated fields, in wire order, are the schema of *all* its versions:

    class FetchPartition(Message):
        partition: int32 = 0
        current_leader_epoch: Annotated[int32, since(9)] = -1
        high_watermark: Annotated[int64, since(18), tag(1)] = 2**63 - 1

Always true here:
- one class serves every version; a field that a version lacks keeps its default when decoded and is left out when
  encoded;
- every field has a default (Kafka's own), so that code names only what it means to say;
- `X | None` is nullable on the wire from the version given by `nullable_since`, else in every version. A *tagged* struct
  is `X | None` with None for "not sent", since tags are absent when they hold their default (KIP-482).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import msgspec

__all__ = [
    "NULL_UUID",
    "Api",
    "Buffer",
    "Message",
    "Parts",
    "RecordsField",
    "RecordsParts",
    "Uuid",
    "Wire",
    "boolean",
    "bytestring",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "nullable_since",
    "since",
    "string",
    "tag",
    "until",
]

Buffer: TypeAlias = bytes | memoryview
"""Readable bytes. Views must be flat (one dimension, format "B"), so that `len` is their size in bytes."""

Parts: TypeAlias = list[Buffer]
"""An encoded frame in pieces, ready for a transport's `writelines`."""

NULL_UUID = bytes(16)
"""Kafka's zero UUID: "no topic id"."""


class Message(msgspec.Struct, gc=False):
    """Base of every request, response and nested struct.

    Untracked by the garbage collector: messages form trees, never cycles, and a large request would otherwise trigger
    collections.
    """


@dataclass(frozen=True, slots=True)
class Wire:
    """How a Python type looks on the wire."""

    kind: str


@dataclass(frozen=True, slots=True)
class since:
    """First version that carries the field."""

    version: int


@dataclass(frozen=True, slots=True)
class until:
    """Last version that carries the field."""

    version: int


@dataclass(frozen=True, slots=True)
class tag:
    """The field travels in the tag section under this number, and only when it differs from its default (KIP-482)."""

    number: int


@dataclass(frozen=True, slots=True)
class nullable_since:
    """First version in which the field may be null."""

    version: int


boolean: TypeAlias = Annotated[bool, Wire("bool")]
int8: TypeAlias = Annotated[int, Wire("int8")]
int16: TypeAlias = Annotated[int, Wire("int16")]
int32: TypeAlias = Annotated[int, Wire("int32")]
int64: TypeAlias = Annotated[int, Wire("int64")]
float64: TypeAlias = Annotated[float, Wire("float64")]
string: TypeAlias = Annotated[str, Wire("string")]
Uuid: TypeAlias = Annotated[bytes, Wire("uuid")]
"""Sixteen raw bytes: topic ids are compared and hashed far more often than they are printed."""
bytestring: TypeAlias = Annotated[bytes, Wire("bytes")]
"""Opaque bytes, copied out of the frame because their holders outlive it."""
RecordsField: TypeAlias = Annotated[Buffer, Wire("records")]
"""Record batches. Decoded as a view into the frame, never copied: it is valid as long as the frame's buffer is."""
RecordsParts: TypeAlias = Annotated[Buffer | Sequence[Buffer], Wire("records")]
"""Record batches to send: one buffer or a list of them, neither of which is copied unless it is small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One Kafka API: its key, its versions and its two messages."""

    key: int
    name: str
    min_version: int
    """Oldest version that can be decoded and encoded."""
    max_version: int
    flexible_since: int
    """First version with compact lengths and tags (KIP-482): request header v2, response header v1."""
    request: type[Message]
    response: type[Message]
    advertised_min_version: int | None = None
    """Oldest version to put into an ApiVersions response, where that is not `min_version`."""

    def supports(self, version: int) -> bool:
        return self.min_version <= version <= self.max_version
