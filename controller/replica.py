"""A replica of the metadata: the image, and reading and applying the log.

Always true:
- Entries are applied in sequence, each once, by the same rule on every node: one that was written under an older
  controller epoch than an entry before it changes nothing (I9).
- A snapshot stands for the entries up to its index, and is checked as a whole before it is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controller.entry import Entry, EntryHeader
from controller.errors import MetadataCorrupt
from controller.image import Applied, Image
from controller.invariants import checking
from controller.log import Behind, MetadataLog
from controller.records import LeaderChanged, Record
from controller.state import State

__all__ = ["Replica"]


class Replica:
    """Only its owner's one task calls what changes it."""

    def __init__(self, log: MetadataLog) -> None:
        self._log = log
        self.image = Image(State())
        self.next_index = 0
        """Index of the first entry that the image does not hold."""
        self.entries_since_snapshot = 0
        self.bytes_since_snapshot = 0
        self.snapshot_size_bytes = 0
        self.before_record: Callable[[State, Record], None] | None = None
        """Told of each record right before it is applied, for whoever studies the past."""
        self._subscribers: list[Callable[[Applied], None]] = []

    def subscribe(self, callback: Callable[[Applied], None]) -> Callable[[], None]:
        """Have entries told to a callback as they are applied; returns how to unsubscribe."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    async def start(self) -> None:
        """Load the newest snapshot and what follows it."""
        floor = await self._log.read_floor()
        if floor.snapshot_index >= 0:
            await self._load_snapshot(floor.snapshot_index)
        await self.catch_up()

    async def catch_up(self, watched: EntryHeader | None = None) -> bool | None:
        """Read and apply the log to its tail.

        Tells whether the watched entry was applied (True), another stands in its slot (False), or neither is known,
        because a snapshot was loaded that holds the slot (None).
        """
        outcome: bool | None = None
        read_ahead = 1
        missing_snapshot = -1
        while True:
            read = await self._log.read(self.next_index, read_ahead)
            if isinstance(read, Behind):
                if read.snapshot_index == missing_snapshot:
                    raise MetadataCorrupt(
                        f"the metadata snapshot as of entry {missing_snapshot}, which the floor names, is missing "
                        "(does something else delete from the bucket?)"
                    )
                missing_snapshot = -1 if await self._load_snapshot(read.snapshot_index) else read.snapshot_index
                continue
            for entry in read.entries:
                if watched is not None and entry.header.index == watched.index:
                    outcome = entry.header == watched
                self.apply(entry)
            if read.at_tail:
                return outcome
            read_ahead *= 2

    async def copied_state(self) -> State:
        """A copy of the image's state. Others get their turns meanwhile; whoever changes the image waits for it."""
        for step in self.image.state.copying():
            if step is not None:
                return step
            await asyncio.sleep(0)
        raise AssertionError("copying ends with the copy")

    def apply(self, entry: Entry) -> None:
        """Apply the entry that is next, unless its writer had been deposed before."""
        header, records = entry.header, entry.records
        assert header.index == self.next_index, "entries are applied in sequence"
        if header.controller_epoch > self.image.controller_epoch and not (
            records and isinstance(records[0], LeaderChanged) and records[0].controller_epoch == header.controller_epoch
        ):
            raise MetadataCorrupt(
                f"entry {header.index} is of controller epoch {header.controller_epoch}, which never took office "
                "(was the metadata log tampered with?)"
            )
        if header.controller_epoch < self.image.controller_epoch:
            records = ()
        topic_ids: set[bytes] = set()
        broker_configs = False
        for record in records:
            if self.before_record is not None:
                self.before_record(self.image.state, record)
            touched = self.image.state.apply(record)
            topic_ids |= touched.topics
            broker_configs |= touched.broker_configs
        self.image.forget(topic_ids)
        self.next_index += 1
        self.entries_since_snapshot += 1
        self.bytes_since_snapshot += entry.size_bytes
        self._tell(
            Applied(
                index=header.index,
                records=records,
                topic_ids=frozenset(topic_ids),
                broker_configs=broker_configs,
                is_reset=False,
            )
        )

    async def _load_snapshot(self, index: int) -> bool:
        """Show the state as of a snapshot; False where it is gone."""
        loaded = await self._log.load_snapshot(index)
        if loaded is None:
            return False
        state, self.snapshot_size_bytes = loaded
        for _ in checking(state.tables):
            await asyncio.sleep(0)
        self.show(state, index)
        return True

    def show(self, state: State, index: int) -> None:
        """Show a state that holds the entries up to an index, and go on from there."""
        self.image.replace(state)
        self.next_index = index + 1
        self.entries_since_snapshot = self.bytes_since_snapshot = 0
        self._tell(
            Applied(
                index=index, records=(), topic_ids=frozenset(state.tables.topics), broker_configs=True, is_reset=True
            )
        )

    def _tell(self, applied: Applied) -> None:
        for callback in tuple(self._subscribers):
            callback(applied)
