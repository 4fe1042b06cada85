"""The object store as the engine and the metadata log need it: a port, its values and its errors.

Always true:
- An object is written whole or not at all, and is seen by every later read (S3 has been strongly consistent since
  December 2020; a store that is not is refused by the probe).
- `Unavailable` leaves the outcome of a write open: it may have happened. Only reading back, or a conditional
  write that fails, tells. Every other error means: nothing was written.
- Keys are built in `paths.py` and nowhere else.
- Implementations retry what can be retried, within the deadline of their settings; the caller sees only the end.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "LEAST_COPY_BYTES",
    "AccessDenied",
    "Archived",
    "Buffer",
    "CopyUnconfirmed",
    "CopyUnsupported",
    "MultipartSummary",
    "NotFound",
    "ObjectStore",
    "ObjectStoreError",
    "ObjectSummary",
    "PreconditionFailed",
    "StoredObject",
    "StoredRange",
    "Unavailable",
    "WriteConflict",
    "WrittenObject",
    "scatter",
    "stream_by_ranges",
]

Buffer = bytes | bytearray | memoryview


class ObjectStoreError(Exception):
    """What every error of an object store is."""


class NotFound(ObjectStoreError):
    """No such object (S3: 404 NoSuchKey)."""


class PreconditionFailed(ObjectStoreError):
    """A conditional write did not hold (S3: 412). Nothing was written."""


class WriteConflict(ObjectStoreError):
    """A concurrent conditional write to the same key (S3: 409). Nothing was written; read, then try again."""


class AccessDenied(ObjectStoreError):
    """The store refuses us: it is read-only, or bucket, credentials or clock are not right. Trying again does not help."""

    def __init__(self, message: str, *, is_advised: bool = False) -> None:
        """`is_advised`: the message says already what to do; else permissions are what lacks."""
        super().__init__(message)
        self.is_advised = is_advised


class Archived(ObjectStoreError):
    """The object is there, and lies in a storage class that cannot be read (S3: 403 InvalidObjectState) until an operator has it restored."""


class CopyUnsupported(ObjectStoreError):
    """This store does not copy ranges of objects. Nothing was written."""


class CopyUnconfirmed(ObjectStoreError):
    """A copied range was to have a CRC, and the store says another, or none. Nothing was written."""


class Unavailable(ObjectStoreError):
    """Time-out, reset, throttling or 5xx for longer than the deadline. A write may have happened or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectSummary:
    """An object as a listing tells of it."""

    key: str
    size_bytes: int
    last_modified_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipartSummary:
    """A multipart upload that was begun and not completed, as a listing tells of it."""

    key: str
    begun_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """A whole small object and its entity tag."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenObject:
    """A large object that was written part by part."""

    etag: str
    is_confirmed: bool
    """The store told the CRCs of all that it has, and they are those of what was sent. Else only reading back tells."""


LEAST_COPY_BYTES = 5 << 20
"""S3's least part, but for an object's last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRange:
    """Bytes [start, end) of an object that is there, to become a part of another one."""

    key: str
    start: int
    end: int
    crc32c: int | None
    """What the copy must have, by the store's own word; None: the caller has read these bytes, and takes the store's copy on trust."""

    def __len__(self) -> int:
        return self.end - self.start


def scatter(data: Buffer, parts: Sequence[memoryview]) -> int:
    """Copy into these, one after the other, for stores that cannot read into them; how many bytes that were."""
    view = memoryview(data)
    position = 0
    for part in parts:
        piece = view[position : position + len(part)]
        part[: len(piece)] = piece
        position += len(piece)
    return position


async def stream_by_ranges(
    store: ObjectStore, key: str, start: int, end: int, *, buffer_bytes: int
) -> AsyncGenerator[Buffer, None]:
    """`get_stream` of stores that have no other way to do it."""
    while start < end:
        data = await store.get_range(key, start, min(start + buffer_bytes, end))
        if not data:
            return
        start += len(data)
        yield data


class ObjectStore(Protocol):
    """An S3-shaped store. `parts` are concatenated; they are not copied more than the transport needs."""

    @property
    def uri(self) -> str:
        """What the operator configured, without secrets."""

    async def put(self, key: str, parts: Sequence[Buffer], *, crc32c: int | None = None) -> str:
        """Write or replace an object; returns its entity tag. `crc32c` is of the whole object, sent where the store takes it."""

    async def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> str:
        """Create an object (If-None-Match: *); returns its entity tag.

        Raises:
            PreconditionFailed: the key exists (possibly by an earlier attempt of ours whose reply was lost).
            WriteConflict: another conditional write is under way.
        """

    async def put_if_match(self, key: str, parts: Sequence[Buffer], etag: str) -> str:
        """Replace an object whose entity tag is still `etag` (If-Match); returns the new one.

        Raises:
            PreconditionFailed: it has another one by now (possibly ours, see above), or does not exist.
        """

    async def get(self, key: str) -> StoredObject:
        """Read a whole (small) object. Raises NotFound."""

    async def get_range(self, key: str, start: int, end: int) -> bytes | bytearray:
        """Read bytes [start, end); fewer where the object is shorter. They are the caller's. Raises NotFound."""

    async def get_range_into(self, key: str, start: int, parts: Sequence[memoryview]) -> int:
        """Read from `start` on into these, one after the other; how many bytes there were (fewer where the object is shorter).

        What is in them counts only once this has returned. Raises NotFound.
        """

    def get_stream(self, key: str, start: int, end: int, *, buffer_bytes: int) -> AsyncGenerator[Buffer, None]:
        """Read bytes [start, end) piece by piece, in one request for as long as the reader takes; fewer where the object is shorter.

        Pieces are the caller's. About `buffer_bytes` wait for it, at most; where the store cannot be kept waiting, a request
        is made for so much each time. The caller closes it (`aclose`). Raises NotFound.
        """

    async def get_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """Read the last `size` bytes (fewer where the object is smaller) and tell the object's whole size. Raises NotFound."""

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectSummary]:
        """Objects whose key starts with `prefix` and sorts after `start_after`, in key order."""

    async def delete_many(self, keys: Sequence[str]) -> None:
        """Delete objects; those that do not exist count as deleted."""

    async def put_multipart(self, key: str, parts: AsyncIterator[Buffer]) -> WrittenObject:
        """Write a large object part by part; nothing is visible before the end. Aborts its upload when it fails."""

    async def put_composed(self, key: str, parts: AsyncIterator[Buffer | StoredRange]) -> WrittenObject:
        """As `put_multipart`, with ranges of other objects, which the store copies without sending them to us.

        All ranges, and what lies between two of them (if anything), have at least `LEAST_COPY_BYTES`.

        Raises:
            NotFound: an object to copy from is gone.
            CopyUnsupported, CopyUnconfirmed: see there; `put_multipart` does it, with bytes that the caller reads.
        """

    def list_multiparts(self, prefix: str) -> AsyncIterator[MultipartSummary]:
        """Multipart uploads under way or left behind, for keys that start with `prefix`."""

    async def abort_stale_multiparts(self, prefix: str, older_than_ms: int) -> int:
        """Abort multipart uploads begun before a wall-clock time (ms since the epoch); returns how many."""

    async def now_ms(self) -> int:
        """The store's own clock (S3: the `Date` header), in ms since the epoch."""

    async def close(self) -> None:
        """Release connections. Calling it again does nothing."""
