"""A cluster's bucket, opened to be looked at: the store, its keys, the metadata log and the state that it makes.

Always true: nothing is written there, and no call waits for ever: a store that does not answer within `PATIENCE_MS` is
told as unreachable.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from controller.config import ControllerSettings
from controller.image import Image
from controller.log import MetadataLog
from controller.replica import Replica
from s3stream.config import ObjectStoreSettings
from s3stream.metadata import StreamId
from s3stream.objectstore import ObjectStore
from s3stream.open import open_object_store
from s3stream.paths import Paths

__all__ = ["Bucket", "open_bucket", "stream_name"]

PATIENCE_MS = 30_000
"""For one request with all its attempts: a person waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Where a cluster keeps everything."""

    store: ObjectStore
    """Refuses to write."""
    paths: Paths
    log: MetadataLog

    async def replica(self) -> Replica:
        """The metadata up to the end of the log.

        Raises:
            MetadataCorrupt, UnsupportedMetadata, InvariantViolated: it cannot be had.
            ObjectStoreError: the store does not answer.
        """
        replica = Replica(self.log)
        await replica.start()
        return replica


@asynccontextmanager
async def open_bucket(uri: str, rng: random.Random) -> AsyncIterator[Bucket]:
    """Open a bucket to read only, and close it at the end of the block.

    Raises:
        InvalidSettings: the URI cannot be understood.
        AccessDenied: there is no such directory.
    """
    settings = ObjectStoreSettings(request_timeout_ms=PATIENCE_MS // 3, deadline_ms=PATIENCE_MS)
    store, paths = open_object_store(uri, rng=rng, settings=settings, read_only=True)
    try:
        log = MetadataLog(store=store, paths=paths, settings=ControllerSettings(), rng=rng)
        log.bears_outage = False
        yield Bucket(store=store, paths=paths, log=log)
    finally:
        await store.close()


def stream_name(image: Image | None, stream_id: int) -> str:
    """`topic-partition` of a stream; empty where the metadata does not know it."""
    place = None if image is None else image.partition_of(StreamId(stream_id))
    topic = None if image is None or place is None else image.topic_by_id(place[0])
    return "" if topic is None or place is None else f"{topic.name}-{place[1]}"
