"""What must hold of the bucket when a simulation is over: read from the bucket alone, as a new node would.

- Two readers of the metadata log, one from a snapshot and one that is given every entry as it comes, agree (I9).
- Ranges of a stream are contiguous, do not overlap, and reach from its log start to its committed end (I5).
- Every object that is referenced is there, whole, and no other is; no upload in parts is left, and of a WAL in the bucket
  next to nothing (I8).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from broker.inspect import bucket as inspected
from broker.verify.findings import Finding, UncheckedRow
from broker.verify.verify import Verification
from controller.config import ControllerSettings
from controller.controller import Controller
from controller.log import MetadataLog
from controller.snapshot import digest
from controller.state import State
from s3stream.config import CollectionSettings
from s3stream.errors import ObjectCorrupt
from s3stream.memory import Bucket, MemoryObjectStore
from s3stream.object_format import verify_object
from s3stream.paths import Paths
from wal.slot import SlotKind, read_slot_header

__all__ = ["inspect_bucket"]

_BATCHES_LEFT = 2
"""The one that says that all others are trimmed, and the one that said it before."""


async def inspect_bucket(bucket: Bucket, paths: Paths, *, last_digest: str | None, wals: int | None = 1) -> list[str]:
    """Broken promises of the bucket. `last_digest` is of the state that the last broker ended with; so many
    WALs are trimmed to their ends; None: things have not come to rest, so something may be left that nothing needs."""
    verified = await _verify(bucket, paths)
    controller = await Controller.start(
        store=MemoryObjectStore(bucket),
        paths=paths,
        settings=ControllerSettings(),
        now_ms=lambda: 0,
        rng=random.Random(0),
    )
    try:
        state = controller.image.state
        problems = [
            *verified,
            *_broken_streams(state),
            *_broken_objects(state, bucket, paths),
        ]
        if wals is not None:
            problems += [*_unreferenced(state, bucket, paths), *_left_over(bucket, paths, wals)]
        if last_digest is not None and digest(state) != last_digest:
            problems.append("metadata: the bucket does not say what the last broker believed (I9)")
        return problems
    finally:
        await controller.close()


def _left_over(bucket: Bucket, paths: Paths, wals: int) -> Iterator[str]:
    if bucket.multiparts:
        yield f"{len(bucket.multiparts)} uploads in parts were neither completed nor aborted (I8)"
    batches = 0
    for key in bucket.keys:
        if key.startswith(f"{paths.prefix}/wal/log/"):
            header = read_slot_header(bucket.objects[key].data, key.removeprefix(f"{paths.prefix}/"))
            batches += header.kind is SlotKind.BATCH
    if batches > _BATCHES_LEFT * wals:
        yield f"{batches} batches of the WAL are still there, and all of it is trimmed (I8)"


async def _verify(bucket: Bucket, paths: Paths) -> list[str]:
    """What `tidelog verify` finds: nothing, whatever happened to the brokers."""
    store, rng = MemoryObjectStore(bucket), random.Random(0)
    log = MetadataLog(store=store, paths=paths, settings=ControllerSettings(), rng=rng)
    run = Verification(
        bucket=inspected.Bucket(store=store, paths=paths, log=log), settings=CollectionSettings(), parallel=2
    )
    return [f"verify: {row.text()}" async for row in run.rows() if isinstance(row, Finding | UncheckedRow)]


def _broken_streams(state: State) -> Iterator[str]:
    for stream in state.tables.streams.values():
        name = f"stream {stream.stream_id}"
        ranges = stream.ranges
        if not ranges:
            continue
        for before, after in itertools.pairwise(ranges):
            if before.end_offset != after.base_offset and (before.end_offset, after.base_offset) not in stream.gaps:
                yield f"{name}: a range ends at {before.end_offset}, the next begins at {after.base_offset} (I5)"
        if ranges[0].base_offset > stream.log_start_offset:
            yield f"{name}: begins at {ranges[0].base_offset}, past its log start {stream.log_start_offset} (I5)"
        if ranges[-1].end_offset != stream.committed_end_offset:
            yield f"{name}: ends at {ranges[-1].end_offset}, and is said to end at {stream.committed_end_offset} (I5)"


def _broken_objects(state: State, bucket: Bucket, paths: Paths) -> Iterator[str]:
    tables = state.tables
    referenced = set(tables.objects)
    for stream in tables.streams.values():
        for object_id in stream.object_ids:
            if object_id not in referenced:
                yield f"stream {stream.stream_id} refers to object {object_id}, which is none (I8)"
    for object_id, entry in tables.objects.items():
        stored = bucket.objects.get(paths.data_object(object_id))
        if stored is None:
            yield f"object {object_id} is referenced and not there (I8)"
            continue
        if len(stored.data) != entry.size_bytes:
            yield f"object {object_id} has {len(stored.data)} bytes, not {entry.size_bytes}"
        try:
            verify_object(stored.data, object_id)
        except ObjectCorrupt as error:
            yield f"object {object_id} is damaged: {error}"


def _unreferenced(state: State, bucket: Bucket, paths: Paths) -> Iterator[str]:
    kept = {paths.data_object(object_id) for object_id in state.tables.objects}
    left = sorted(key for key in bucket.keys if key.startswith(paths.data_prefix) and key not in kept)
    if left:
        yield f"{len(left)} objects are not referenced and still there, such as {left[0]} (I8)"
