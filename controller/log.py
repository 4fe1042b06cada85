"""The metadata log in the bucket: entries, leader object, floor and snapshots. No state machine in here.

Theory of operation:
- Entry N is created with If-None-Match, so there is one entry N, whoever writes. Its writer reads the leader object after
  the PUT: only if that still names it does the entry count as committed. A deposed writer's entry may nevertheless be in
  the log, before its successor's leader-change entry; then everybody applies it, because all read the same sequence.
- The floor is raised, by compare-and-swap, before entries below it are deleted, and only past what leads to no point of
  the restore window any more: the newest snapshot that is older than the window stays, with everything after it. From
  then on a slot below the floor may be empty, or even taken by a leader that slept since: so nothing that was read counts (neither an entry nor a 404)
  until the floor, read afterwards, turns out to be at or below the first slot. Otherwise the snapshot is loaded.
- But for the first `entry_min_age_ms`, by the store's clock, no entry is deleted. So who knew the log's end less than that ago knows by a 404 alone
  that it still ends there: a look costs one request (`read_one`).
- A lost reply leaves a write open. It is settled by trying again: a conditional write that fails shows the key, and the
  nonce in it tells whether it is ours.

Always true:
- No call gives up on its own (but for refused credentials at the start): each tries until it knows. Callers bound their patience with a timeout, and must take a
  cancelled write for one that may have happened, or may yet.
- An idle log causes no requests.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import msgspec

from controller.config import ControllerSettings
from controller.entry import Entry, EntryHeader, decode_entry, encode_entry
from controller.errors import MetadataCorrupt, UnsupportedMetadata, WrongCluster
from controller.snapshot import Capture, encode, restore
from controller.state import State
from s3stream.objectstore import (
    AccessDenied,
    NotFound,
    ObjectStore,
    PreconditionFailed,
    StoredObject,
    Unavailable,
    WriteConflict,
)
from s3stream.paths import Paths

__all__ = ["Behind", "Claim", "ClusterMarker", "Entries", "Floor", "LeaderObject", "LogEndsEarly", "MetadataLog"]

T = TypeVar("T")

_MAX_READ_AHEAD: Final = 32
"""Entries asked for at once while catching up: a start after 1,000 entries takes some 40 round trips."""
_DELETE_BATCH: Final = 1_000
"""Keys S3 deletes with one request."""
_KEPT_SNAPSHOTS: Final = 2
"""The newest, and the one before it for a reader that has just read the floor."""
_BUCKET_FORMAT: Final = 1
"""Format of cluster marker, leader object and floor."""


class ClusterMarker(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster marker, as JSON for people's eyes."""

    format: int
    cluster_id: str
    created_at_ms: int


class LeaderObject(msgspec.Struct, frozen=True, kw_only=True):
    """The leader object, as JSON for people's eyes."""

    controller_epoch: int
    leader: str
    nonce: str
    next_index: int = 0
    """Entries below were there when this was written: a log that ends before has lost some. (0: an older version wrote it.)"""


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """Entries from `index` on exist; what is below is in the snapshot as of entry `snapshot_index`."""

    index: int
    snapshot_index: int


class LogEndsEarly(Exception):
    """Not all was read that was there: read on. What is not there then was deleted."""

    def __init__(self, next_index: int) -> None:
        super().__init__(f"entries below {next_index}")
        self.next_index = next_index


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An office taken; good while the leader object carries its nonce."""

    controller_epoch: int
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """Entries in sequence; `at_tail` where there was none after them."""

    entries: Sequence[Entry]
    at_tail: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """The asked entry may be gone: load the snapshot, then go on after it."""

    snapshot_index: int


class MetadataLog:
    """Reads and writes the log's objects, each call until it knows the outcome."""

    def __init__(self, *, store: ObjectStore, paths: Paths, settings: ControllerSettings, rng: random.Random) -> None:
        self._store = store
        self._paths = paths
        self._settings = settings
        self._rng = rng
        self.last_error: Exception | None = None
        """Why the bucket did not answer as it should, while it does not."""
        self.bears_refusal = False
        """Whether AccessDenied is waited out (credentials are being renewed) or raised (they are wrong)."""
        self.bears_outage = True
        """Whether Unavailable, which a store raises after its own deadline, is waited out or raised (tools do not wait)."""

    # ---- cluster marker

    async def ensure_cluster(self, cluster_id: str, fallback_id: str, now_ms: int) -> str:
        """Read the bucket's cluster id, or give it one: `cluster_id` if not empty, else `fallback_id`.

        Raises:
            WrongCluster: `cluster_id` is not empty and the bucket has another.
            UnsupportedMetadata: a newer version formatted the bucket.
            MetadataCorrupt: it was deleted.
        """
        key = self._paths.cluster
        found = await self._get(key)
        if found is None:
            if await self.was_used() and await self._get(key) is None:
                raise MetadataCorrupt(
                    f"{key} is missing, and objects of a cluster are there: something else deletes from the bucket. Put it back, "
                    "from the bucket's versions or a copy; it is JSON with format (1), cluster_id (`tidelog inspect wal` tells it) "
                    "and created_at_ms",
                    is_advised=True,
                )
            marker = ClusterMarker(format=_BUCKET_FORMAT, cluster_id=cluster_id or fallback_id, created_at_ms=now_ms)
            await self._create(key, msgspec.json.encode(marker))
            found = await self._get(key)
            if found is None:
                raise MetadataCorrupt(
                    f"{key} vanished just after it was written: does something else delete from the bucket?",
                    is_advised=True,
                )
        marker = _decode_json(found.data, ClusterMarker, key)
        if marker.format > _BUCKET_FORMAT:
            raise UnsupportedMetadata(
                f"{key} has format {marker.format}, newer than {_BUCKET_FORMAT}: upgrade this node"
            )
        if cluster_id and marker.cluster_id != cluster_id:
            raise WrongCluster(
                f"{self._store.uri} with prefix {self._paths.prefix!r} belongs to cluster {marker.cluster_id}, and "
                f"cluster.id is configured as {cluster_id}: point this node at its own bucket or prefix, or, if the "
                f"bucket is the right one, set cluster.id to {marker.cluster_id} or leave it out"
            )
        return marker.cluster_id

    async def was_used(self) -> bool:
        """Whether a cluster has lived here: there are snapshots or data objects, a WAL that was written to, or more entries than its first."""

        async def look() -> bool:
            paths = self._paths
            for prefix in (paths.snapshot_prefix, paths.data_prefix, paths.wal_prefix, paths.log_entry(1)):
                async for _ in self._store.list(prefix):
                    return True
            return False

        return await self._until_known(look)

    async def read_marker(self) -> ClusterMarker | None:
        """The cluster marker as it is; None in a bucket that no cluster lives in."""
        found = await self._get(self._paths.cluster)
        return None if found is None else _decode_json(found.data, ClusterMarker, self._paths.cluster)

    # ---- leader object

    async def take_office(
        self,
        leader: str,
        newer_than: int,
        *,
        next_index: int,
        may_replace: Callable[[LeaderObject | None], bool] = lambda holder: True,
    ) -> Claim | None:
        """Become the leader, under a controller epoch that is higher than any before; None where the holder may not be replaced.

        Args:
            next_index: entries below were read.

        Raises:
            LogEndsEarly: more were there when the office was taken, or left, the last time.
        """
        nonce = self._rng.randbytes(16).hex()
        backoff = self._backoff()
        attempt: LeaderObject | None = None
        while True:
            found = await self._get(self._paths.leader)
            current = None if found is None else _decode_json(found.data, LeaderObject, self._paths.leader)
            if attempt is None or current != attempt:
                if not may_replace(current):
                    return None
                if current is not None and current.next_index > next_index:
                    raise LogEndsEarly(current.next_index)
                controller_epoch = max(newer_than, current.controller_epoch if current is not None else 0) + 1
                attempt = LeaderObject(
                    controller_epoch=controller_epoch, leader=leader, nonce=nonce, next_index=next_index
                )
                if not await self._swap_once(self._paths.leader, msgspec.json.encode(attempt), found):
                    await backoff()
                    continue
            return Claim(controller_epoch=attempt.controller_epoch, nonce=nonce)

    async def resign(self, claim: Claim, *, next_index: int) -> None:
        """Leave the office, if it is still held: its epoch stays, and how far the log went; nobody is named."""
        found = await self._get(self._paths.leader)
        current = None if found is None else _decode_json(found.data, LeaderObject, self._paths.leader)
        if found is None or current is None or current.nonce != claim.nonce:
            return
        nobody = LeaderObject(controller_epoch=claim.controller_epoch, leader="", nonce="", next_index=next_index)
        await self._swap_once(self._paths.leader, msgspec.json.encode(nobody), found)

    async def still_leads(self, claim: Claim) -> bool:
        """True where nobody has taken office since."""
        current = await self.read_leader()
        if current is None:
            return False
        return (current.controller_epoch, current.nonce) == (claim.controller_epoch, claim.nonce)

    async def read_leader(self) -> LeaderObject | None:
        """Who took office last; None where nobody ever did."""
        found = await self._get(self._paths.leader)
        return None if found is None else _decode_json(found.data, LeaderObject, self._paths.leader)

    # ---- entries

    async def append(self, header: EntryHeader, body: bytes) -> bool:
        """Write an entry; False where its slot holds, or held, another's. A new nonce is needed for every entry."""
        key = self._paths.log_entry(header.index)
        parts = encode_entry(header, body)
        backoff = self._backoff()
        while True:
            try:
                await self._store.put_if_absent(key, parts)
            except PreconditionFailed:
                found = await self._get(key)
                return found is not None and decode_entry(found.data, header.index, where=key).header == header
            except (Unavailable, WriteConflict, AccessDenied) as error:
                self._bear(error)
                await backoff()
            else:
                self.last_error = None
                return True

    async def read(self, index: int, read_ahead: int = 1) -> Entries | Behind:
        """Read entries from an index on, up to `read_ahead` of them (bounded)."""
        wanted = range(index, index + max(1, min(read_ahead, _MAX_READ_AHEAD)))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._get(self._paths.log_entry(each))) for each in wanted]
        floor = await self.read_floor()
        if floor.index > index:
            return Behind(snapshot_index=floor.snapshot_index)
        results = [task.result() for task in tasks]
        entries: list[Entry] = []
        for each, found in zip(wanted, results, strict=True):
            if found is None:
                if any(results[each - index :]):
                    await self._refuse_hole(each)
                return Entries(entries=entries, at_tail=not any(results[each - index :]))
            entries.append(decode_entry(found.data, each, where=self._paths.log_entry(each)))
        return Entries(entries=entries, at_tail=False)

    async def read_one(self, index: int) -> Entry | None:
        """Read one entry, in one request. None says that there is none, if the log ended at or before it less than
        `entry_min_age_ms` ago: else it may have been deleted."""
        key = self._paths.log_entry(index)
        found = await self._get(key)
        return None if found is None else decode_entry(found.data, index, where=key)

    async def _refuse_hole(self, index: int) -> None:
        """Entry `index` was not there, later ones were: it was just being written, or deleted by some stranger."""
        if await self._get(self._paths.log_entry(index)) is None and (await self.read_floor()).index <= index:
            raise MetadataCorrupt(
                f"{self._paths.log_entry(index)} is missing, later entries exist (does something else delete from the bucket?)"
            )

    # ---- snapshots and floor

    async def load_snapshot(self, index: int) -> tuple[State, int] | None:
        """The state as of a snapshot, and its size; None where it is gone by now (a newer one exists; read the floor)."""
        key = self._paths.snapshot(index)
        found = await self._get(key)
        if found is None:
            return None
        for step in restore(found.data, where=key):
            if step is not None:
                state, found_index = step
                if found_index != index:
                    raise MetadataCorrupt(f"{key} is the snapshot as of entry {found_index}")
                return state, len(found.data)
            await asyncio.sleep(0)
        raise MetadataCorrupt(f"{key} is not a whole snapshot")

    async def put_snapshot(self, taken: Capture) -> int:
        """Write a snapshot; whoever takes it as of one index writes the same bytes. Returns its size."""
        parts: list[bytes] = []
        for part in encode(taken):
            parts.append(part)
            await asyncio.sleep(0)
        await self._until_known(lambda: self._store.put(self._paths.snapshot(taken.index), parts))
        return sum(map(len, parts))

    def lost_entries(self, first: int, end: int) -> MetadataCorrupt:
        """The log ends before an entry that was there when the leader object was written."""
        what = (
            f"{self._paths.log_entry(first)} is"
            if end == first + 1
            else f"the {end - first} entries from {self._paths.log_entry(first)} on are"
        )
        return MetadataCorrupt(
            f"{what} missing, and {self._paths.leader} says that the log went on to there: something else deletes from the bucket. Put back "
            "what was deleted, from the bucket's versions or a copy, with all brokers stopped",
            is_advised=True,
        )

    async def read_floor(self) -> Floor:
        found = await self._get(self._paths.floor)
        return (
            Floor(index=0, snapshot_index=-1) if found is None else _decode_json(found.data, Floor, self._paths.floor)
        )

    async def raise_floor(self, floor: Floor) -> Floor:
        """Make a floor durable, unless there is one with a newer snapshot; returns the durable one. It is never lowered."""
        backoff = self._backoff()
        while True:
            found = await self._get(self._paths.floor)
            if found is not None:
                current = _decode_json(found.data, Floor, self._paths.floor)
                if current.snapshot_index >= floor.snapshot_index:
                    return current
                floor = Floor(index=max(floor.index, current.index), snapshot_index=floor.snapshot_index)
            if await self._swap_once(self._paths.floor, msgspec.json.encode(floor), found):
                return floor
            await backoff()

    async def restore_base(self, window_ms: int) -> int:
        """Index of the newest snapshot that was written before a window that ends now, by the store's clock; -1: there is none.

        From it, every point within the window can be reached: a snapshot is written after its last entry.
        """

        async def base() -> int:
            began_ms = await self._store.now_ms() - window_ms
            found = -1
            async for summary in self._store.list(self._paths.snapshot_prefix):
                index = self._paths.snapshot_index(summary.key)
                if index is not None and summary.last_modified_ms <= began_ms:
                    found = max(found, index)
            return found

        return await self._until_known(base)

    async def delete_below(self, floor: Floor, *, base: int | None = None) -> int:
        """Delete what a durable floor makes superfluous; returns how many objects. What fails is found again next time.

        Args:
            floor: What `raise_floor` returned: another controller's may promise more entries than was asked for here.
            base: The oldest snapshot that is needed; None: that of the floor.
        """
        min_age_ms = self._settings.entry_min_age_ms
        before_ms = await self._until_known(self._store.now_ms) - min_age_ms if min_age_ms else None
        entries = await self._keys_below(self._paths.log_prefix, self._paths.log_index, floor.index, before_ms)
        snapshots = await self._keys_below(
            self._paths.snapshot_prefix, self._paths.snapshot_index, floor.snapshot_index + 1
        )
        needed = self._paths.snapshot(floor.snapshot_index if base is None else max(base, 0))
        keys = entries + [key for key in snapshots[:-_KEPT_SNAPSHOTS] if key < needed]
        for start in range(0, len(keys), _DELETE_BATCH):
            await self._until_known(partial(self._store.delete_many, keys[start : start + _DELETE_BATCH]))
        return len(keys)

    # ---- requests that are repeated until their outcome is known

    async def _get(self, key: str) -> StoredObject | None:
        async def get() -> StoredObject | None:
            try:
                return await self._store.get(key)
            except NotFound:
                return None

        return await self._until_known(get)

    async def _keys_below(
        self, prefix: str, number_of: Callable[[str], int | None], end: int, before_ms: int | None = None
    ) -> list[str]:
        """Keys with numbers below an end, in order; up to the first that was not written before a time, where one is given."""

        async def keys() -> list[str]:
            found = []
            async for summary in self._store.list(prefix):
                number = number_of(summary.key)
                if number is not None:
                    if number >= end or (before_ms is not None and summary.last_modified_ms > before_ms):
                        break
                    found.append(summary.key)
            return found

        return await self._until_known(keys)

    async def _create(self, key: str, data: bytes) -> None:
        """Create an object, or find it there."""

        async def create() -> None:
            try:
                await self._store.put_if_absent(key, [data])
            except PreconditionFailed:
                return

        await self._until_known(create)

    async def _swap_once(self, key: str, data: bytes, current: StoredObject | None) -> bool:
        """One attempt to replace an object; False: look again (it may have been changed, even by this attempt)."""
        try:
            if current is None:
                await self._store.put_if_absent(key, [data])
            else:
                await self._store.put_if_match(key, [data], current.etag)
        except PreconditionFailed:
            return False
        except (Unavailable, WriteConflict, AccessDenied) as error:
            self._bear(error)
            return False
        self.last_error = None
        return True

    async def _until_known(self, request: Callable[[], Awaitable[T]]) -> T:
        backoff = self._backoff()
        while True:
            try:
                result = await request()
            except (Unavailable, WriteConflict, AccessDenied) as error:
                self._bear(error)
                await backoff()
            else:
                self.last_error = None
                return result

    def _bear(self, error: Exception) -> None:
        self.last_error = error
        if isinstance(error, AccessDenied) and not self.bears_refusal:
            raise error
        if isinstance(error, Unavailable) and not self.bears_outage:
            raise error

    def _backoff(self) -> Callable[[], Awaitable[None]]:
        wait_ms = float(self._settings.retry_backoff_ms)

        async def wait() -> None:
            nonlocal wait_ms
            await asyncio.sleep(wait_ms * self._rng.uniform(0.5, 1.0) / 1_000)
            wait_ms = min(wait_ms * 2, self._settings.max_retry_backoff_ms)

        return wait


def _decode_json(data: bytes, kind: type[T], key: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise MetadataCorrupt(f"{key} cannot be decoded: {error}") from error
