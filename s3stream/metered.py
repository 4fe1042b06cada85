"""A store around a store: counts what a bucket is billed for, by what it is for.

Always true:
- Requests are counted as S3 bills them, whatever store is behind: a multipart upload is its parts and two more, a listing its
  pages, a deletion (which is free) one for each thousand keys. Attempts that the store repeats by itself are not seen here.
- A request counts when it is sent, whether it succeeds or not: a bucket is billed for 404 and 412 as well. Bytes count when they moved.
- All who share a `Usage` add to it; each says by its `Purpose` who it is. Nothing is counted twice.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import astuple, dataclass, field, replace
from functools import reduce

from s3stream.objectstore import (
    LEAST_COPY_BYTES,
    Buffer,
    MultipartSummary,
    ObjectStore,
    ObjectSummary,
    StoredObject,
    StoredRange,
    WrittenObject,
)

__all__ = ["MeteredObjectStore", "Purpose", "Usage", "Used"]

_LIST_PAGE_KEYS = 1000
_DELETE_BATCH_KEYS = 1000
"""S3's own limits of one request."""


class Purpose(enum.StrEnum):
    """What a request is for."""

    UPLOAD = "upload"
    """Of what was acknowledged."""
    COMPACTION = "compaction"
    COLLECTION = "collection"
    """Deletion, and looking for what is to be deleted."""
    METADATA = "metadata"
    """The metadata log: entries, snapshots, floor and leader object."""
    LEASE = "lease"
    """Looks at the metadata log by which a node that is busy keeps its lease; others are of the metadata."""
    READ = "read"
    """Of what is in objects only: catch-up reads, and states at a start."""
    WAL = "wal"
    """The write-ahead log, where it is in a bucket."""
    PROBE = "probe"
    """Trying the store out at the start."""


@dataclass(slots=True)
class Used:
    """Requests, as S3's price list tells them apart, and bytes of objects."""

    puts: int = 0
    """PUT, COPY, POST; also each part of a multipart upload, its beginning and its completion."""
    lists: int = 0
    """Pages of listings, at the price of a PUT."""
    gets: int = 0
    """GET, HEAD and all others."""
    deletes: int = 0
    """Free."""
    sent_bytes: int = 0
    received_bytes: int = 0

    def plus(self, other: Used) -> Used:
        """Both together."""
        return Used(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))

    def minus(self, other: Used) -> Used:
        """What is not in `other`, which was the same some time ago."""
        return Used(*(ours - theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(slots=True)
class Usage:
    """What was used since the start, by purpose."""

    by_purpose: dict[Purpose, Used] = field(default_factory=dict)

    def of(self, purpose: Purpose) -> Used:
        """Counts on while it is held."""
        return self.by_purpose.setdefault(purpose, Used())

    def total(self, *purposes: Purpose) -> Used:
        """For some purposes together; for all where none is named."""
        return reduce(
            Used.plus, (used for purpose, used in self.by_purpose.items() if purpose in (purposes or Purpose)), Used()
        )

    def copy(self) -> Usage:
        """As of now."""
        return Usage({purpose: replace(used) for purpose, used in self.by_purpose.items()})

    def since(self, before: Usage) -> Usage:
        """What was used after `before` was a `copy` of this."""
        return Usage(
            {purpose: used.minus(before.by_purpose.get(purpose, Used())) for purpose, used in self.by_purpose.items()}
        )

    def add(self, other: Usage) -> None:
        """Add what somebody else used, such as another process."""
        for purpose, used in other.by_purpose.items():
            ours = self.of(purpose)
            for name in Used.__slots__:
                setattr(ours, name, getattr(ours, name) + getattr(used, name))


class MeteredObjectStore:
    """An `ObjectStore` that delegates, on behalf of one purpose."""

    def __init__(self, inner: ObjectStore, *, usage: Usage, purpose: Purpose, part_size_bytes: int) -> None:
        """Count in `usage`, which may be shared. `part_size_bytes` is that of the store's multipart uploads."""
        self._inner = inner
        self._used = usage.of(purpose)
        self._part_size_bytes = part_size_bytes

    @property
    def uri(self) -> str:
        """That of the inner store."""
        return self._inner.uri

    async def put(self, key: str, parts: Sequence[Buffer], *, crc32c: int | None = None) -> str:
        """See ObjectStore."""
        self._put(_size(parts))
        return await self._inner.put(key, parts, crc32c=crc32c)

    async def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> str:
        """See ObjectStore."""
        self._put(_size(parts))
        return await self._inner.put_if_absent(key, parts)

    async def put_if_match(self, key: str, parts: Sequence[Buffer], etag: str) -> str:
        """See ObjectStore."""
        self._put(_size(parts))
        return await self._inner.put_if_match(key, parts, etag)

    async def get(self, key: str) -> StoredObject:
        """See ObjectStore."""
        self._used.gets += 1
        found = await self._inner.get(key)
        self._used.received_bytes += len(found.data)
        return found

    async def get_range(self, key: str, start: int, end: int) -> bytes | bytearray:
        """See ObjectStore."""
        self._used.gets += 1
        data = await self._inner.get_range(key, start, end)
        self._used.received_bytes += len(data)
        return data

    async def get_range_into(self, key: str, start: int, parts: Sequence[memoryview]) -> int:
        """See ObjectStore."""
        self._used.gets += 1
        size = await self._inner.get_range_into(key, start, parts)
        self._used.received_bytes += size
        return size

    async def get_stream(self, key: str, start: int, end: int, *, buffer_bytes: int) -> AsyncGenerator[Buffer, None]:
        """See ObjectStore. One request, also where the store has to begin it again."""
        self._used.gets += 1
        async with aclosing(self._inner.get_stream(key, start, end, buffer_bytes=buffer_bytes)) as pieces:
            async for piece in pieces:
                self._used.received_bytes += len(piece)
                yield piece

    async def get_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See ObjectStore."""
        self._used.gets += 1
        data, whole_size = await self._inner.get_tail(key, size)
        self._used.received_bytes += len(data)
        return data, whole_size

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectSummary]:
        """See ObjectStore."""
        seen = 0
        self._used.lists += 1
        async for summary in self._inner.list(prefix, start_after=start_after):
            if seen and seen % _LIST_PAGE_KEYS == 0:
                self._used.lists += 1
            seen += 1
            yield summary

    async def delete_many(self, keys: Sequence[str]) -> None:
        """See ObjectStore."""
        self._used.deletes += -(-len(keys) // _DELETE_BATCH_KEYS)
        await self._inner.delete_many(keys)

    async def put_multipart(self, key: str, parts: AsyncIterator[Buffer]) -> WrittenObject:
        """See ObjectStore. What fits in one part is one request; otherwise beginning and completion count as well."""
        waiting_bytes = full_parts = 0
        used = self._used

        async def counted() -> AsyncIterator[Buffer]:
            nonlocal waiting_bytes, full_parts
            async for part in parts:
                full, waiting_bytes = divmod(waiting_bytes + len(part), self._part_size_bytes)
                used.puts += full + (1 if full and not full_parts else 0)  # the first one is preceded by the beginning
                full_parts += full
                used.sent_bytes += len(part)
                yield part
            used.puts += 1 if full_parts else 0  # the completion
            used.puts += 1 if waiting_bytes or not full_parts else 0

        return await self._inner.put_multipart(key, counted())

    async def put_composed(self, key: str, parts: AsyncIterator[Buffer | StoredRange]) -> WrittenObject:
        """See ObjectStore. A copy is one request, what lies between two is parts; beginning and completion count as well."""
        used = self._used
        between_bytes = 0

        def parted(size: int) -> int:
            whole = max(0, (size - LEAST_COPY_BYTES) // self._part_size_bytes)
            return whole + (1 if size > whole * self._part_size_bytes else 0)

        async def counted() -> AsyncIterator[Buffer | StoredRange]:
            nonlocal between_bytes
            async for part in parts:
                if isinstance(part, StoredRange):
                    used.puts += parted(between_bytes) + 1
                    between_bytes = 0
                else:
                    between_bytes += len(part)
                    used.sent_bytes += len(part)
                yield part
            used.puts += parted(between_bytes) + 1  # the completion

        used.puts += 1
        return await self._inner.put_composed(key, counted())

    async def list_multiparts(self, prefix: str) -> AsyncIterator[MultipartSummary]:
        """See ObjectStore."""
        self._used.lists += 1
        async for summary in self._inner.list_multiparts(prefix):
            yield summary

    async def abort_stale_multiparts(self, prefix: str, older_than_ms: int) -> int:
        """See ObjectStore."""
        self._used.lists += 1
        aborted = await self._inner.abort_stale_multiparts(prefix, older_than_ms)
        self._used.deletes += aborted
        return aborted

    async def now_ms(self) -> int:
        """See ObjectStore."""
        self._used.gets += 1
        return await self._inner.now_ms()

    async def close(self) -> None:
        """See ObjectStore."""
        await self._inner.close()

    def _put(self, size: int) -> None:
        self._used.puts += 1
        self._used.sent_bytes += size


def _size(parts: Sequence[Buffer]) -> int:
    return sum(map(len, parts))
