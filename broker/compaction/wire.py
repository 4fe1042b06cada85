"""What a broker and its compaction process say to each other, over a socket pair.

A frame is the size of a message (4 bytes, big-endian) and the message as MessagePack. The broker begins with `Start`.

- The broker tells every entry of the metadata log that it applies (`Told`), in order, but for those that its socket has no room
  for: whoever finds one missing reads it in the bucket.
- The worker asks one thing at a time (`IdsWanted`, `Commit`), and gets one answer (`Ids`, `Committed`, `Refused`). What a commit
  changed is told before it is answered.
- The worker sends `Figures` each second, as a sign of life as well.

Both are of one version: the broker starts its own program. Nothing here is ever stored.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from s3stream.config import CompactionSettings, ObjectStoreSettings
from s3stream.metadata import CommitObjects, ObjectId
from s3stream.metered import Usage
from wal.histogram import DURATION_BOUNDS_S

__all__ = [
    "Commit",
    "Committed",
    "Figures",
    "FromBroker",
    "FromWorker",
    "Ids",
    "IdsWanted",
    "LinkBroken",
    "LinkEnded",
    "Refused",
    "RequestFigures",
    "Start",
    "Told",
    "encode",
    "read_from_broker",
    "read_from_worker",
]

MAX_MESSAGE_BYTES: Final = 256 << 20
"""A commit has some 130 bytes a range; more than this is no message of ours."""

_SIZE_BYTES: Final = 4


class LinkBroken(Exception):
    """The other side said what it must not say."""


class LinkEnded(LinkBroken):
    """The other side is gone."""


class Start(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Everything that the worker has to know."""

    object_store_uri: str
    object_store: ObjectStoreSettings
    compaction: CompactionSettings
    block_size_bytes: int
    memory_limit_bytes: int
    """Data of the whole process; the kernel refuses more."""
    seed: int
    logging_format: str
    logging_level: str


class Told(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An entry of the metadata log was applied."""

    index: int
    controller_epoch: int
    records: bytes
    """As in the log; of a leader that was deposed none."""


class Ids(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Object ids, never given out before."""

    object_ids: tuple[ObjectId, ...]


class Committed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A commit took effect."""

    index: int
    """Of the last entry that the broker has applied by now."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What was asked failed."""

    error: str
    """SourcesChanged, ObjectExpired or MetadataUnavailable."""
    message: str


class IdsWanted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The worker wants ids for new objects."""

    count: int


class Commit(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The worker wants objects put in the place of their sources."""

    commit: CommitObjects


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFigures:
    """Requests of one operation to the object store, since the worker's start."""

    count: int
    transferred_bytes: int
    failures: dict[str, int]
    """By name of the error."""
    duration_counts: tuple[int, ...]
    duration_total_s: float

    @classmethod
    def none(cls) -> RequestFigures:
        """Before the first."""
        return cls(
            count=0,
            transferred_bytes=0,
            failures={},
            duration_counts=(0,) * (len(DURATION_BOUNDS_S) + 1),
            duration_total_s=0.0,
        )


class Figures(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the worker did since its start, and what it takes."""

    jobs: int
    discarded_jobs: int
    read_bytes: int
    written_bytes: int
    copied_bytes: int
    damaged_objects: int
    memory_bytes: int
    """Resident, of the whole process."""
    cpu_seconds: float
    requests: dict[str, RequestFigures]
    """By operation."""
    usage: Usage


FromBroker = Start | Told | Ids | Committed | Refused
FromWorker = IdsWanted | Commit | Figures

_encoder: Final = msgspec.msgpack.Encoder()
_from_broker: Final[msgspec.msgpack.Decoder[FromBroker]] = msgspec.msgpack.Decoder(FromBroker)
_from_worker: Final[msgspec.msgpack.Decoder[FromWorker]] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: FromBroker | FromWorker) -> bytes:
    """The frame of a message."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_SIZE_BYTES, "big") + body


async def read_from_broker(reader: asyncio.StreamReader) -> FromBroker:
    """The next message of the broker. Raises LinkBroken."""
    message: FromBroker = await _read(reader, _from_broker)
    return message


async def read_from_worker(reader: asyncio.StreamReader) -> FromWorker:
    """The next message of the worker. Raises LinkBroken."""
    message: FromWorker = await _read(reader, _from_worker)
    return message


async def _read(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    try:
        size = int.from_bytes(await reader.readexactly(_SIZE_BYTES), "big")
        if size > MAX_MESSAGE_BYTES:
            raise LinkBroken(f"a message of {size} bytes")
        return decoder.decode(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, OSError) as error:
        raise LinkEnded("its link ended") from error
    except msgspec.DecodeError as error:
        raise LinkBroken(f"not a message: {error}") from error
