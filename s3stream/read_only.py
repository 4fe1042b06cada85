"""A store around a store that reads and never writes: what tools that only look get.

Always true: no call that would change anything reaches the inner store; each raises `AccessDenied` instead.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from s3stream.objectstore import (
    AccessDenied,
    Buffer,
    MultipartSummary,
    ObjectStore,
    ObjectSummary,
    StoredObject,
    StoredRange,
    WrittenObject,
)

__all__ = ["ReadOnlyObjectStore"]


class ReadOnlyObjectStore:
    """An `ObjectStore` that delegates reads."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner

    @property
    def uri(self) -> str:
        """That of the inner store."""
        return self._inner.uri

    async def put(self, key: str, parts: Sequence[Buffer], *, crc32c: int | None = None) -> str:
        """Refuses."""
        raise _refused(key)

    async def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> str:
        """Refuses."""
        raise _refused(key)

    async def put_if_match(self, key: str, parts: Sequence[Buffer], etag: str) -> str:
        """Refuses."""
        raise _refused(key)

    async def get(self, key: str) -> StoredObject:
        """See ObjectStore."""
        return await self._inner.get(key)

    async def get_range(self, key: str, start: int, end: int) -> bytes | bytearray:
        """See ObjectStore."""
        return await self._inner.get_range(key, start, end)

    async def get_range_into(self, key: str, start: int, parts: Sequence[memoryview]) -> int:
        """See ObjectStore."""
        return await self._inner.get_range_into(key, start, parts)

    def get_stream(self, key: str, start: int, end: int, *, buffer_bytes: int) -> AsyncGenerator[Buffer, None]:
        """See ObjectStore."""
        return self._inner.get_stream(key, start, end, buffer_bytes=buffer_bytes)

    async def get_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See ObjectStore."""
        return await self._inner.get_tail(key, size)

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectSummary]:
        """See ObjectStore."""
        return self._inner.list(prefix, start_after=start_after)

    async def delete_many(self, keys: Sequence[str]) -> None:
        """Refuses."""
        raise _refused(", ".join(keys[:3]))

    async def put_multipart(self, key: str, parts: AsyncIterator[Buffer]) -> WrittenObject:
        """Refuses."""
        raise _refused(key)

    async def put_composed(self, key: str, parts: AsyncIterator[Buffer | StoredRange]) -> WrittenObject:
        """Refuses."""
        raise _refused(key)

    def list_multiparts(self, prefix: str) -> AsyncIterator[MultipartSummary]:
        """See ObjectStore."""
        return self._inner.list_multiparts(prefix)

    async def abort_stale_multiparts(self, prefix: str, older_than_ms: int) -> int:
        """Refuses."""
        raise _refused(prefix)

    async def now_ms(self) -> int:
        """See ObjectStore."""
        return await self._inner.now_ms()

    async def close(self) -> None:
        """See ObjectStore."""
        await self._inner.close()


def _refused(key: str) -> AccessDenied:
    return AccessDenied(f"{key}: the store was opened to read only")
