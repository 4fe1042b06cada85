"""A bucket, its metadata, and a reader of what is in it, for tests."""

from __future__ import annotations

import dataclasses

from s3stream.config import ReadSettings
from s3stream.metadata import StreamId
from s3stream.object_reader import ObjectReader
from tests.s3stream.doubles import (
    PATHS,
    PlainPayloads,
    new_world,
    offsets_of,
)

KIB = 1 << 10
STREAM = StreamId(1)
END = 1 << 40
SMALL = ReadSettings(
    memory_bytes=256 * KIB,
    index_cache_bytes=4 * KIB,
    read_ahead_initial_bytes=4 * KIB,
    read_ahead_max_bytes=16 * KIB,
    max_get_size_bytes=8 * KIB,
    tail_size_bytes=64 * KIB,
)
NO_READ_AHEAD = dataclasses.replace(SMALL, read_ahead_initial_bytes=1, read_ahead_max_bytes=1)


class World:
    """A bucket, its metadata, and a reader."""

    def __init__(self, settings: ReadSettings = SMALL) -> None:
        self.store, self.metadata = new_world()
        self.metadata.create(1, 2, 3)
        self.reader = self.new_reader(settings)

    def new_reader(self, settings: ReadSettings = SMALL) -> ObjectReader:
        return ObjectReader(
            store=self.store,
            paths=PATHS,
            metadata=self.metadata,
            payload_format=PlainPayloads(),
            settings=settings,
        )

    async def read(self, offset: int, max_bytes: int = 1 << 20, end_offset: int = END) -> list[int]:
        return offsets_of(await self.reader.read(STREAM, offset, end_offset, max_bytes))

    def gets(self) -> int:
        return self.store.requests["get_range"]
