"""Where a cluster of a crash test keeps its objects and its write-ahead log: on the local disk, or in a bucket of a real store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.stores.s3_server import S3Server

__all__ = ["WALS", "InBucket", "OnDisk", "Place"]

WALS: Final = ("file", "s3")
_PREFIX = "cluster"


class Place(ABC):
    """Settings of the broker, and a look at what it stored that does not go through it."""

    object_store_uri: str
    wal_uri: str
    environment: Mapping[str, str]
    wal_capacity_bytes: int

    @abstractmethod
    def count_objects(self) -> int:
        """Data objects in the store; those that a collector or compactor removed meanwhile are not counted."""

    def _file_wal(self, directory: Path) -> str:
        return f"{(directory / 'wal').as_uri()}?capacity={self.wal_capacity_bytes}"


class OnDisk(Place):
    """All of it below one directory."""

    wal_capacity_bytes = 8 << 20

    def __init__(self, directory: Path) -> None:
        self._objects = directory / "objects"
        self.object_store_uri = self._objects.as_uri()
        self.wal_uri = self._file_wal(directory)
        self.environment = {}

    def count_objects(self) -> int:
        """See Place."""
        return sum(1 for path in self._objects.glob("**/data/**/*") if path.is_file())


class InBucket(Place):
    """Objects and metadata in a new bucket; the log there, too ("s3"), or in a directory ("file"). Small: runs are slower there."""

    wal_capacity_bytes = 4 << 20

    def __init__(self, server: S3Server, directory: Path, *, wal: str) -> None:
        assert wal in WALS
        self._server = server
        self._bucket = server.new_bucket()
        self.object_store_uri = server.uri(self._bucket, _PREFIX)
        in_bucket = f"{self.object_store_uri}&capacity={self.wal_capacity_bytes}&batch_interval_ms=5"
        self.wal_uri = in_bucket if wal == "s3" else self._file_wal(directory)
        self.environment = server.environment

    def count_objects(self) -> int:
        """See Place."""
        return len(self._server.keys(self._bucket, f"{_PREFIX}/data/"))
