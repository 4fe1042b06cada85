"""What is taken out of damaged WALs that were set aside, and which partitions stay offline for what is missing in them.

Always true:
- A partition that lost nothing, as far as can be proven (`wal.salvage`), has all that the WAL held of it put into objects, and is closed there
  in order: so it opens on the WAL in use as after an orderly stop.
- Of any other, what comes before the first loss is put into objects too. It stays open on the damaged WAL, so nobody can open it anywhere else: it
  is offline until a start finds the WAL repaired, or an operator gives it up (`tidelog wal abandon`), and nothing of it is given up before.
- A WAL that was set aside is deleted only when no partition is open on it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker.payload import RecordBatchFormat
from controller.image import Image
from controller.node_metadata import NodeMetadata
from s3stream.config import StorageSettings
from s3stream.metadata import OpenedStream, StreamId
from s3stream.object_reader import ObjectReader
from s3stream.objectstore import ObjectStore, Unavailable
from s3stream.paths import Paths
from s3stream.storage import Storage
from wal.arena import Arena
from wal.aside import AsideWal, SalvagedWal
from wal.errors import WalCorrupt
from wal.salvage import Assessment, StreamLoss

__all__ = ["OfflineStream", "assess", "assessment_of", "salvage", "streams_on", "take_out"]

log = logging.getLogger("tidelog.salvage")

UPLOAD_TIMEOUT_S = 600.0
"""For what a damaged WAL holds. A start needs the object store; it is better to fail than to hang."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineStream:
    """A stream of which acknowledged records may be missing."""

    stream_id: StreamId
    wal_id: str
    place: str
    """Where the damaged WAL is."""
    loss: StreamLoss


def streams_on(image: Image, wal_id: str) -> dict[StreamId, int]:
    """The streams that are open on a WAL, each with the end of what objects hold of it."""
    return {
        stream.stream_id: stream.committed_end_offset
        for stream in image.state.tables.streams.values()
        if stream.wal_id == wal_id
    }


def assessment_of(image: Image, wal_id: str) -> Assessment:
    """What is known of the streams that are open on a WAL, to hold against what it has."""
    streams = [stream for stream in image.state.tables.streams.values() if stream.wal_id == wal_id]
    return Assessment(
        ((stream.stream_id, stream.committed_end_offset) for stream in streams),
        {stream.stream_id: stream.wal_leader_epoch for stream in streams},
    )


async def assess(aside: AsideWal, image: Image) -> Assessment:
    """What a damaged WAL holds of streams, and what it has lost. Nothing is changed.

    Raises:
        WalError: it cannot be read.
    """
    assessment = assessment_of(image, aside.wal_id)
    wal = SalvagedWal(aside.wal_id, aside.findings, assessment, cluster_id="")
    async for _ in wal.recover():
        pass
    return assessment


async def salvage(
    asides: Sequence[AsideWal],
    *,
    image: Image,
    metadata: NodeMetadata,
    store: ObjectStore,
    paths: Paths,
    settings: StorageSettings,
    rng: random.Random,
) -> list[OfflineStream]:
    """Take what there is out of each WAL that was set aside; returns what stays offline.

    Raises:
        Unavailable, MetadataUnavailable: the object store does not take it now. Start again: all is as it was.
    """
    offline: list[OfflineStream] = []
    for aside in asides:
        ends = streams_on(image, aside.wal_id)
        if ends:
            assessment = await take_out(aside, metadata=metadata, store=store, paths=paths, settings=settings, rng=rng)
            log.info(
                "a damaged WAL was read: %(complete)d of %(partitions)d partitions lost nothing and go on (WAL %(wal_id)s in %(place)s)",
                {
                    "complete": len(assessment.complete),
                    "partitions": len(ends),
                    "wal_id": aside.wal_id,
                    "place": aside.place,
                },
            )
            ends = streams_on(image, aside.wal_id)
            offline += [
                OfflineStream(
                    stream_id=stream_id, wal_id=aside.wal_id, place=aside.place, loss=assessment.streams[stream_id]
                )
                for stream_id in ends
            ]
        if not ends:
            await aside.remove()
            log.info(
                "a damaged WAL was deleted: nothing refers to it any more (WAL %(wal_id)s in %(place)s)",
                {"wal_id": aside.wal_id, "place": aside.place},
            )
    return offline


async def take_out(
    aside: AsideWal,
    *,
    metadata: NodeMetadata,
    store: ObjectStore,
    paths: Paths,
    settings: StorageSettings,
    rng: random.Random,
) -> Assessment:
    """Take over the streams that are open on a WAL which nobody writes to any more, put what it holds of them into objects, and close those
    that lost nothing.

    Raises:
        NodeRefused: another node recovers it.
        Unavailable, MetadataUnavailable: the object store does not take it now.
        StorageError: it does not continue what objects hold, or this node's memory is too small for it.
        NodeFenced: another process runs as this node.
    """
    # Before it is read: what its former owner had committed by then is counted, and nothing is committed there any more.
    claimed = await metadata.recover_wal(aside.wal_id)
    known = [(opened.stream_id, opened.committed_end_offset) for opened in claimed]
    assessment = Assessment(known, {opened.stream_id: opened.least_leader_epoch for opened in claimed})
    wal = SalvagedWal(aside.wal_id, aside.findings, assessment, cluster_id="")
    payload_format = RecordBatchFormat()
    claim = _Claim(metadata, claimed, assessment)
    failures: list[BaseException] = []
    storage = Storage(
        wal=wal,
        arena=Arena(settings.arena_bytes),
        metadata=claim,
        store=store,
        paths=paths,
        reader=ObjectReader(
            store=store, paths=paths, metadata=claim, payload_format=payload_format, settings=settings.read
        ),
        payload_format=payload_format,
        settings=settings,
        rng=rng,
        on_failed=failures.append,
        uploads_at_once=True,
    )
    try:
        await storage.start([opened.stream_id for opened in claimed])
    except WalCorrupt as error:
        # Not even its header: then nothing of it is known, and everything that is open on it is in doubt.
        log.error("nothing can be read of a damaged WAL: %(error)s", {"error": error})
        await storage.close(timeout_s=0)
        assessment = Assessment(known)
        for stream in assessment.streams.values():
            stream.in_doubt = True
        assessment.end()
        return assessment
    except BaseException:
        await storage.close(timeout_s=0)
        raise
    if not await storage.close(timeout_s=UPLOAD_TIMEOUT_S) or failures:
        raise Unavailable(
            f"what the WAL in {aside.place} holds cannot be put into the object store now; it is tried again at the next start"
        ) from next(iter(failures), None)
    return assessment


class _Claim:
    """The metadata as the storage engine sees it, for one WAL that was taken over: its streams are open already, and only what is complete is
    closed."""

    def __init__(self, metadata: NodeMetadata, claimed: Sequence[OpenedStream], assessment: Assessment) -> None:
        self._metadata = metadata
        self._claimed = claimed
        self._assessment = assessment
        self.commit_objects = metadata.commit_objects
        self.new_object_ids = metadata.new_object_ids
        self.trim_streams = metadata.trim_streams
        self.was_created = metadata.was_created
        self.locate = metadata.locate
        self.ranges = metadata.ranges
        self.newest_state = metadata.newest_state
        self.live_objects = metadata.live_objects
        self.committed_end_offset = metadata.committed_end_offset
        self.log_start_offset = metadata.log_start_offset

    async def open_streams(self, stream_ids: Sequence[StreamId]) -> Sequence[OpenedStream]:
        """All that was open on the WAL."""
        return self._claimed

    async def close_streams(self, end_offsets: Mapping[StreamId, int], leader_epochs: Mapping[StreamId, int]) -> None:
        """Close those that lost nothing."""
        complete = self._assessment.complete
        ends = {stream_id: end for stream_id, end in end_offsets.items() if stream_id in complete}
        await self._metadata.close_streams(ends, leader_epochs)
