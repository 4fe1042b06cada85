"""Any object store as the WAL's port: relative keys, and the few errors that the WAL tells apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from s3stream.objectstore import (
    AccessDenied,
    Buffer,
    NotFound,
    ObjectStore,
    PreconditionFailed,
    Unavailable,
    WriteConflict,
)
from wal.objects import ListedObject, ObjectsRefused, ObjectsUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["StoreForWal"]


class StoreForWal:
    """`WalObjects` under a prefix of an object store."""

    def __init__(self, store: ObjectStore, prefix: str = "", *, is_shared: bool = False) -> None:
        """A store that is shared is left open by `close`."""
        self._store = store
        self._is_shared = is_shared
        self.is_closed = False
        self._root = f"{prefix}/" if prefix else ""

    def shared(self) -> StoreForWal:
        """The same, for somebody who needs it for a shorter time."""
        return StoreForWal(self._store, self._root.rstrip("/"), is_shared=True)

    @property
    def uri(self) -> str:
        """See `WalObjects`."""
        return self._store.uri

    async def create(self, key: str, parts: Sequence[Buffer]) -> bool:
        """See `WalObjects`."""
        with _translated():
            try:
                await self._store.put_if_absent(self._root + key, parts)
            except PreconditionFailed:
                return False
            return True

    async def read(self, key: str) -> bytes | None:
        """See `WalObjects`."""
        with _translated():
            try:
                return (await self._store.get(self._root + key)).data
            except NotFound:
                return None

    async def read_head(self, key: str, size_bytes: int) -> bytes | None:
        """See `WalObjects`."""
        with _translated():
            try:
                return bytes(await self._store.get_range(self._root + key, 0, size_bytes))
            except NotFound:
                return None

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ListedObject]:
        """See `WalObjects`."""
        after = self._root + start_after if start_after else ""
        with _translated():
            async for found in self._store.list(self._root + prefix, start_after=after):
                yield ListedObject(found.key.removeprefix(self._root), found.size_bytes)

    async def delete(self, keys: Sequence[str]) -> None:
        """See `WalObjects`."""
        with _translated():
            await self._store.delete_many([self._root + key for key in keys])

    async def close(self) -> None:
        """See `WalObjects`."""
        self.is_closed = True
        if not self._is_shared:
            await self._store.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (Unavailable, WriteConflict) as error:
        raise ObjectsUnavailable(str(error)) from error
    except AccessDenied as error:
        raise ObjectsRefused(str(error)) from error
