"""The object store as a WAL in a bucket needs it: a port, far smaller than what stores can do.

Always true:
- An object appears whole or not at all, is seen by every later read and listing, and is never replaced: `create` is the only
  write. A store that does not keep that is refused by the probe before a WAL sees it.
- `ObjectsUnavailable` leaves open whether a write happened. Only occupying the key, or reading it, tells.

`s3stream/wal_objects.py` makes one of every object store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from wal.errors import WalError

__all__ = ["Buffer", "ListedObject", "ObjectsRefused", "ObjectsUnavailable", "WalObjects"]

Buffer = bytes | bytearray | memoryview


class ObjectsUnavailable(WalError):
    """The store did not answer, is throttled, or another write to the key is under way: try again. A write may have happened."""


class ObjectsRefused(WalError):
    """The store refuses these credentials, or is read-only. Trying again helps only where somebody changes that."""


class ListedObject(NamedTuple):
    """An object as a listing tells of it."""

    key: str
    size_bytes: int


class WalObjects(Protocol):
    """Objects under one prefix; keys are relative to it."""

    @property
    def uri(self) -> str:
        """What the operator configured, without secrets."""

    async def create(self, key: str, parts: Sequence[Buffer]) -> bool:
        """Create an object of parts (If-None-Match: *); False where the key exists. The parts are let go when the call ends, however it ends."""

    async def read(self, key: str) -> bytes | None:
        """A whole object; None where there is none."""

    async def read_head(self, key: str, size_bytes: int) -> bytes | None:
        """Its first bytes, fewer where it is shorter; None where there is none."""

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ListedObject]:
        """Objects whose key starts with `prefix` and sorts after `start_after`, in key order."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that do not exist count as deleted."""

    async def close(self) -> None:
        """Release connections. Calling it again does nothing."""
