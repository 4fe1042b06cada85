"""What verification sees of WALs: partitions that a damaged one keeps offline, and, where WALs are in a bucket, their slots.

Always true: a file WAL is on its node's disk, and not looked at (`tidelog inspect wal` does). Where a writer trims while its slots are read, they are read
again before anything is a finding.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator

from broker.inspect.wal_in_bucket import open_wal_objects
from broker.salvage import assessment_of
from broker.verify.findings import Finding, Kind, UncheckedRow
from controller.image import Image
from controller.tables import StreamStatus
from wal.config import ObjectWalConfig
from wal.errors import WalError
from wal.identity import read_identity
from wal.log import RecoveredRun
from wal.objects import WalObjects
from wal.slot import identity_key, log_prefix
from wal.slot_salvage import salvage_slots, slot_asides

__all__ = ["check_wals", "find_offline"]

_ATTEMPTS = 3


def find_offline(image: Image) -> Iterator[Finding]:
    """Partitions that are open on a WAL which their node does not use any more."""
    tables = image.state.tables
    for stream in tables.streams.values():
        node = tables.nodes.get(stream.node_id)
        if stream.status is not StreamStatus.CLOSED and node is not None and stream.wal_id != node.wal_id:
            yield Finding(
                what=Kind.OFFLINE,
                problem=f"acknowledged records may be missing in WAL {stream.wal_id}, which node {stream.node_id} found damaged and set aside",
                stream_id=stream.stream_id,
            )


async def check_wals(config: ObjectWalConfig, image: Image) -> AsyncIterator[Finding | UncheckedRow]:
    """Hold the slots of every node's WAL against their CRCs and each other."""
    rng = random.Random()
    async with open_wal_objects(config, rng, read_only=True) as objects:
        for node_id in sorted(image.state.tables.nodes):
            key = identity_key(node_id)
            try:
                data = await objects.read(key)
                wal_ids = [] if data is None else [read_identity(data, key).wal_id]
                wal_ids += [aside.wal_id for aside in await slot_asides(objects, node_id, rng)]
                for wal_id in wal_ids:
                    async for finding in _check(objects, wal_id, image, rng):
                        yield finding
            except WalError as error:
                yield UncheckedRow(message=f"the WAL of node {node_id} in {objects.uri}: {error}")


async def _check(objects: WalObjects, wal_id: str, image: Image, rng: random.Random) -> AsyncIterator[Finding]:
    for _ in range(_ATTEMPTS):
        assessment = assessment_of(image, wal_id)
        lost = 0
        async for found in salvage_slots(objects, wal_id, rng):
            lost += not isinstance(found, RecoveredRun)
            assessment.add(found)
        assessment.end()
        if not lost:
            return
    if not assessment.incomplete:
        yield Finding(
            what=Kind.WAL_DAMAGED,
            problem=f"{lost} places cannot be read; no partition has lost anything there",
            key=log_prefix(wal_id),
        )
    for stream_id, loss in assessment.incomplete.items():
        for start, end in loss.lost:
            yield Finding(
                what=Kind.WAL_DAMAGED,
                problem="these records are missing" if end is not None else "records from there on may be missing",
                key=log_prefix(wal_id),
                stream_id=stream_id,
                base_offset=start,
                end_offset=start if end is None else end,
            )
