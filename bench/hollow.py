"""An object store that keeps runs of zeros as their length: a day of uploads fits in memory, if payloads are zeros.

Always true:
- What is read is what was written, byte for byte; indexes, states and metadata are kept as they are.
- Every request takes `latency_s` and its bytes' share of `bytes_per_s`, by `asyncio.sleep`: on a virtual clock that costs nothing.
- A run counts as zeros when its CRC-32C is that of as many zeros.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from s3stream.objectstore import (
    Buffer,
    CopyUnconfirmed,
    MultipartSummary,
    NotFound,
    ObjectSummary,
    PreconditionFailed,
    StoredObject,
    StoredRange,
    WrittenObject,
)
from wal.checksum import crc32c

__all__ = ["HollowObjectStore"]

_LEAST_HOLE_BYTES = 512
_STREAM_PIECE_BYTES = 256 << 10


@lru_cache(maxsize=4096)
def _crc_of_zeros(size: int) -> int:
    return crc32c(bytes(size))


@lru_cache(maxsize=16)
def _zeros(size: int) -> bytes:
    return bytes(size)


@dataclass(slots=True)
class _Hollow:
    """An object as a row of pieces: bytes, or how many zeros."""

    pieces: list[bytes | int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    size_bytes: int = 0
    etag: str = ""
    modified_ms: int = 0

    def add(self, part: Buffer) -> None:
        size = len(part)
        hole = size >= _LEAST_HOLE_BYTES and crc32c(part) == _crc_of_zeros(size)
        if self.pieces and isinstance(last := self.pieces[-1], int) == hole:
            self.pieces[-1] = last + size if isinstance(last, int) else last + bytes(part)
        else:
            self.pieces.append(size if hole else bytes(part))
            self.starts.append(self.size_bytes)
        self.size_bytes += size

    def read(self, start: int, end: int) -> bytes:
        end = min(end, self.size_bytes)
        found: list[bytes] = []
        for number in range(max(bisect_right(self.starts, start) - 1, 0), len(self.pieces)):
            piece, at = self.pieces[number], self.starts[number]
            if at >= end:
                break
            if isinstance(piece, int):
                found.append(_zeros(min(at + piece, end) - max(at, start)))
            else:
                found.append(piece[max(start - at, 0) : end - at])
        return found[0] if len(found) == 1 else b"".join(found)


class HollowObjectStore:
    """An `ObjectStore`."""

    def __init__(self, *, latency_s: float = 0.03, bytes_per_s: float = 100e6) -> None:
        self._objects: dict[str, _Hollow] = {}
        self._latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._writes = 0

    @property
    def uri(self) -> str:
        """See ObjectStore."""
        return "hollow://"

    @property
    def size_bytes(self) -> int:
        """Of all objects."""
        return sum(each.size_bytes for each in self._objects.values())

    @property
    def object_count(self) -> int:
        return len(self._objects)

    async def put(self, key: str, parts: Sequence[Buffer], *, crc32c: int | None = None) -> str:
        """See ObjectStore."""
        made = _Hollow()
        for part in parts:
            made.add(part)
        await self._take(made.size_bytes)
        return self._write(key, made)

    async def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> str:
        """See ObjectStore."""
        if key in self._objects:
            raise PreconditionFailed(key)
        return await self.put(key, parts)

    async def put_if_match(self, key: str, parts: Sequence[Buffer], etag: str) -> str:
        """See ObjectStore."""
        if key not in self._objects or self._objects[key].etag != etag:
            raise PreconditionFailed(key)
        return await self.put(key, parts)

    async def get(self, key: str) -> StoredObject:
        """See ObjectStore."""
        found = self._found(key)
        await self._take(found.size_bytes)
        return StoredObject(data=found.read(0, found.size_bytes), etag=found.etag)

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """See ObjectStore."""
        data = self._found(key).read(start, end)
        await self._take(len(data))
        return data

    async def get_stream(self, key: str, start: int, end: int, *, buffer_bytes: int) -> AsyncGenerator[Buffer, None]:
        """See ObjectStore."""
        found = self._found(key)
        await self._take(0)
        piece_bytes = min(buffer_bytes, _STREAM_PIECE_BYTES)
        for begin in range(start, min(end, found.size_bytes), piece_bytes):
            piece = found.read(begin, min(begin + piece_bytes, end))
            await asyncio.sleep(len(piece) / self._bytes_per_s)
            yield piece

    async def get_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See ObjectStore."""
        found = self._found(key)
        data = found.read(max(found.size_bytes - size, 0), found.size_bytes)
        await self._take(len(data))
        return data, found.size_bytes

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectSummary]:
        """See ObjectStore."""
        await self._take(0)
        for key in sorted(key for key in self._objects if key.startswith(prefix) and key > start_after):
            if (found := self._objects.get(key)) is not None:
                yield ObjectSummary(key=key, size_bytes=found.size_bytes, last_modified_ms=found.modified_ms)

    async def delete_many(self, keys: Sequence[str]) -> None:
        """See ObjectStore."""
        await self._take(0)
        for key in keys:
            self._objects.pop(key, None)

    async def put_multipart(self, key: str, parts: AsyncIterator[Buffer]) -> WrittenObject:
        """See ObjectStore."""
        made = _Hollow()
        async for part in parts:
            made.add(part)
        await self._take(made.size_bytes)
        return WrittenObject(etag=self._write(key, made), is_confirmed=True)

    async def put_composed(self, key: str, parts: AsyncIterator[Buffer | StoredRange]) -> WrittenObject:
        """See ObjectStore. CRCs of copies are confirmed."""
        made = _Hollow()
        async for part in parts:
            data = self._found(part.key).read(part.start, part.end) if isinstance(part, StoredRange) else part
            if isinstance(part, StoredRange) and part.crc32c not in (None, crc32c(data)):
                raise CopyUnconfirmed(f"{part.key} from {part.start} on")
            made.add(data)
        await self._take(0)
        return WrittenObject(etag=self._write(key, made), is_confirmed=True)

    async def list_multiparts(self, prefix: str) -> AsyncIterator[MultipartSummary]:
        """See ObjectStore. None is ever left behind."""
        nothing: tuple[MultipartSummary, ...] = ()
        for each in nothing:
            yield each

    async def abort_stale_multiparts(self, prefix: str, older_than_ms: int) -> int:
        """See ObjectStore."""
        return 0

    async def now_ms(self) -> int:
        """See ObjectStore."""
        return int(asyncio.get_running_loop().time() * 1000)

    async def close(self) -> None:
        """See ObjectStore."""

    async def _take(self, size: int) -> None:
        await asyncio.sleep(self._latency_s + size / self._bytes_per_s)

    def _found(self, key: str) -> _Hollow:
        if key not in self._objects:
            raise NotFound(key)
        return self._objects[key]

    def _write(self, key: str, made: _Hollow) -> str:
        self._writes += 1
        made.etag = f"{self._writes}"
        made.modified_ms = int(asyncio.get_running_loop().time() * 1000)
        self._objects[key] = made
        return made.etag
