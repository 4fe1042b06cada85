"""`tidelog inspect wal` for a WAL in a bucket: its slots, what they hold of each partition, what was not uploaded, what is damaged.

Always true: nothing is written. Where a writer trims while it is read, it is read again before anything is called damage.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from broker.inspect.bucket import PATIENCE_MS
from broker.inspect.rows import DamageRow, NoteRow, Row, plural, size
from broker.inspect.wal import StreamTail, frame_row, loss_row, tail_row
from broker.salvage import assessment_of
from controller.image import Image
from s3stream.config import ObjectStoreSettings
from s3stream.open import open_object_store
from s3stream.wal_objects import StoreForWal
from wal.config import ObjectWalConfig
from wal.errors import WalUnavailable
from wal.identity import read_identity
from wal.log import RecoveredRun
from wal.objects import WalObjects
from wal.salvage import Assessment, LostFrame, LostStretch
from wal.slot import identity_key
from wal.slot_salvage import salvage_slots, slot_asides
from wal.survey import frames_of

__all__ = ["inspect_wal_in_bucket", "open_wal_objects"]

_PATIENCE: Final = ObjectStoreSettings(request_timeout_ms=PATIENCE_MS // 3, deadline_ms=PATIENCE_MS)
_ATTEMPTS: Final = 3


class BucketWalRow(Row, frozen=True, kw_only=True):
    """Whose WAL it is, and where."""

    uri: str
    wal_id: str
    node_id: int
    cluster_id: str
    is_set_aside: bool

    def text(self) -> str:
        aside = ", found damaged and set aside" if self.is_set_aside else ""
        return f"WAL {self.wal_id} of node {self.node_id} in cluster {self.cluster_id}, in {self.uri}{aside}"


class SlotsRow(Row, frozen=True, kw_only=True):
    """What was read."""

    start_offset: int
    end_offset: int
    frame_count: int
    payload_bytes: int
    lost: tuple[str, ...]
    """What of the log cannot be read."""

    def text(self) -> str:
        return (
            f"{plural(self.frame_count, 'frame')} with {size(self.payload_bytes)} of payload in log offsets "
            f"[{self.start_offset}, {self.end_offset})"
        )


@asynccontextmanager
async def open_wal_objects(
    config: ObjectWalConfig, rng: random.Random, *, read_only: bool
) -> AsyncIterator[WalObjects]:
    """The objects of a WAL, for a tool."""
    opened = open_object_store(config.store_uri, rng=rng, settings=_PATIENCE, read_only=read_only)
    objects = StoreForWal(opened.store, opened.paths.prefix)
    try:
        yield objects
    finally:
        await objects.close()


async def inspect_wal_in_bucket(
    config: ObjectWalConfig, *, node_id: int, image: Image | None, list_frames: bool
) -> AsyncGenerator[Row]:
    """Tell what is in the WAL of a node, and in those that were set aside.

    Raises:
        WalUnavailable, WalUnsupportedFormat, WalCorrupt: it cannot be looked at.
    """
    rng = random.Random()
    async with open_wal_objects(config, rng, read_only=True) as objects:
        key = identity_key(node_id)
        data = await objects.read(key)
        if data is None:
            raise WalUnavailable(
                f"node {node_id} has no WAL in {objects.uri}: say wal.uri and node.id as the broker has them"
            )
        identity = read_identity(data, key)
        asides = await slot_asides(objects, node_id, rng)
        for wal_id in (identity.wal_id, *(aside.wal_id for aside in asides)):
            yield BucketWalRow(
                uri=objects.uri,
                wal_id=wal_id,
                node_id=identity.node_id,
                cluster_id=identity.cluster_id,
                is_set_aside=wal_id != identity.wal_id,
            )
            async for row in _rows(objects, wal_id, rng, image=image, list_frames=list_frames):
                yield row


async def _rows(
    objects: WalObjects, wal_id: str, rng: random.Random, *, image: Image | None, list_frames: bool
) -> AsyncGenerator[Row]:
    for attempts_left in reversed(range(_ATTEMPTS)):
        tails: dict[int, StreamTail] = {}
        assessment = Assessment(()) if image is None else assessment_of(image, wal_id)
        rows: list[Row] = []
        lost: list[str] = []
        start_offset = end_offset = -1
        async for finding in salvage_slots(objects, wal_id, rng):
            if isinstance(finding, RecoveredRun):
                start_offset = finding.offset if start_offset < 0 else start_offset
                end_offset = finding.end_offset
                for stream_id, payloads in finding.streams.items():
                    tails.setdefault(stream_id, StreamTail()).add(payloads)
                if list_frames:
                    rows += [frame_row(frame, image) for frame in frames_of(finding)]
            elif isinstance(finding, LostFrame):
                lost.append(f"the frame at log offset {finding.offset} does not match its CRC")
            elif isinstance(finding, LostStretch):
                lost.append(f"log offsets {finding.offset} to {finding.end_offset - 1} are missing or unreadable")
            assessment.add(finding)
        assessment.end()
        if not lost or not attempts_left:
            break
    for row in rows:
        yield row
    for stream_id, tail in sorted(tails.items()):
        yield tail_row(stream_id, tail, image)
    yield SlotsRow(
        start_offset=max(start_offset, 0),
        end_offset=max(end_offset, 0),
        frame_count=sum(tail.frame_count for tail in tails.values()),
        payload_bytes=sum(tail.payload_bytes for tail in tails.values()),
        lost=tuple(lost),
    )
    for message in lost:
        yield DamageRow(message=message)
    for stream_id, loss in assessment.incomplete.items():
        yield loss_row(image, stream_id, loss)
    if lost and image is None:
        yield NoteRow(message="without the metadata, what is lost of which partition cannot be told")
