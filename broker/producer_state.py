"""What one partition remembers of its idempotent producers: the pure half of invariant I11.

Always true:
- Checks run against *submitted* batches: one that waits for its durability counts already, so pipelined requests of one
  producer are judged in the order in which they arrived. A retry of a batch that still waits is a duplicate as well;
  the caller makes it wait for its original.
- For every producer the last `DUPLICATES_REMEMBERED` batches of its newest epoch are known. A batch is either their
  exact repetition, or the next in sequence, or refused (KIP-98; `ProducerStateManager` in Kafka).
- Sequences count records and wrap from 2^31 - 1 to 0.
- What all partitions of a node remember together is bounded (`ProducerBudget`): beyond it those that were idle longest anywhere
  are forgotten, before their time (`producer.id.expiration.ms`) is over. Whoever is active stays.
- A producer that is unknown may start at any sequence, as in Kafka since 2.5 (KIP-360), where it may have been forgotten (expired, evicted).
  Where nobody ever was (`complete`), it is new, and starts at 0. Kafka does not look at that: when a partition opens between two
  batches that a producer has under way, the first is refused, the second appended, and the retry of the first passes for a duplicate.
- `snapshot` and `restore` are exact inverses; what was restored and then given the batches that follow equals what was
  never lost. Nothing here reads a clock: the caller says when a batch came.
"""

from __future__ import annotations

import heapq
import itertools
import struct
import weakref
from collections.abc import Iterator
from typing import NamedTuple

from crc32c import crc32c

__all__ = [
    "DUPLICATES_REMEMBERED",
    "MAX_PRODUCERS_PER_PARTITION",
    "PRODUCER_BYTES",
    "DuplicateBatch",
    "InvalidProducerEpoch",
    "OutOfOrderSequence",
    "ProducerBudget",
    "ProducerEntry",
    "ProducerStateCorrupt",
    "ProducerStates",
]

DUPLICATES_REMEMBERED = 5
"""Batches known per producer: as many as an idempotent client may have in flight (`max.in.flight.requests`, KIP-98)."""

MAX_PRODUCERS_PER_PARTITION = 10_000
"""Beyond it the producer that was idle longest is forgotten. An entry costs up to ~450 bytes here and 160 in a state
block; Kafka has no such bound and is known to run out of memory by clients that make a producer per message."""

PRODUCER_BYTES = 512
"""What one takes in memory, rounded up: from this follows how many a node may remember."""

FORGOTTEN_AT_ONCE = 16
"""One of so many of the node's producers is forgotten at once, where there are too many."""

_SEQUENCE_MASK = 0x7FFF_FFFF
_MAGIC = 0x5450  # "TP"
_VERSION = 2
_PREFIX = struct.Struct(">HHIiB")  # magic, version, crc32c of what follows it, entries, 1: complete
_PREFIX_1 = struct.Struct(">HHIi")  # of version 1: may be incomplete
_ENTRY = struct.Struct(">qhqB")  # producer id, producer epoch, last append, batches
_BATCH = struct.Struct(">iiqiq")  # base sequence, last sequence, base offset, record count, log append time
_CRC_FROM = 8
_OLDER_BATCHES_BYTES = (DUPLICATES_REMEMBERED - 1) * _BATCH.size


class InvalidProducerEpoch(Exception):
    """The producer epoch is older than the newest one seen: a newer instance of this producer took over."""


class OutOfOrderSequence(Exception):
    """The batch is neither the next of its producer nor one of its last ones."""


class ProducerStateCorrupt(Exception):
    """A snapshot does not match its CRC or layout, or was written by a newer version."""


class DuplicateBatch(NamedTuple):
    """A batch that was appended before: where it is."""

    base_sequence: int
    last_sequence: int
    base_offset: int
    record_count: int
    log_append_time_ms: int
    """-1 where the topic keeps the clients' timestamps."""


class ProducerEntry(NamedTuple):
    """One producer as others may see it."""

    producer_id: int
    producer_epoch: int
    last_sequence: int
    """-1 where no batch of this epoch is known."""
    last_append_ms: int
    batches: tuple[DuplicateBatch, ...]
    """Oldest first."""


class _Producer:
    __slots__ = ("batches", "last_append_ms", "last_sequence", "producer_epoch")

    def __init__(self, producer_epoch: int) -> None:
        self.producer_epoch = producer_epoch
        self.batches = b""
        """Packed as in a snapshot, oldest first: a third of the memory of objects, and written out as it is."""
        self.last_sequence = -1
        """Of the newest batch."""
        self.last_append_ms = 0


class ProducerBudget:
    """How many producers all partitions of a node remember together."""

    __slots__ = ("_count", "_members", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._members: weakref.WeakSet[ProducerStates] = weakref.WeakSet()
        self._count = 0
        """At least as many as there are; counted anew before anything is forgotten, since partitions come and go."""

    def enter(self, states: ProducerStates) -> None:
        """Count the producers of one more partition, for as long as it is there."""
        self._members.add(states)
        self.added(len(states))

    def added(self, count: int = 1) -> None:
        """So many producers more are remembered: where that is too many, forget those that were idle longest."""
        self._count += count
        if self._count > self._most:
            self._make_room()

    def _make_room(self) -> None:
        members = list(self._members)
        self._count = sum(map(len, members))
        excess = self._count - self._most
        if excess <= 0:
            return
        # Some more at once: looking at all partitions costs the same for one as for thousands.
        excess += self._most // FORGOTTEN_AT_ONCE
        # A partition's producers are in order, so those of all partitions need only be merged. Numbers break ties.
        lines = [states.idle_longest_first(number) for number, states in enumerate(members)]
        doomed = list(itertools.islice(heapq.merge(*lines), excess))
        for _, number, producer_id in doomed:
            members[number].forget(producer_id)
        self._count -= len(doomed)


class ProducerStates:
    """The producers of one partition."""

    __slots__ = ("__weakref__", "_budget", "_by_id", "complete")

    def __init__(self) -> None:
        self.complete = True
        """Every producer that ever wrote to the partition is known."""
        self._budget: ProducerBudget | None = None
        # Kept in order of the last append, the longest idle first, so that expiry and eviction look at the front only.
        self._by_id: dict[int, _Producer] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def share(self, budget: ProducerBudget) -> None:
        """From now on these producers count among all of the node."""
        self._budget = budget
        budget.enter(self)

    def idle_longest_first(self, number: int) -> Iterator[tuple[int, int, int]]:
        """(last append, `number`, producer id) of each; nothing may be remembered or forgotten meanwhile."""
        return ((producer.last_append_ms, number, producer_id) for producer_id, producer in self._by_id.items())

    def forget(self, producer_id: int) -> None:
        """Forget one producer: it may start again at any sequence."""
        del self._by_id[producer_id]
        self.complete = False

    def __contains__(self, producer_id: int) -> bool:
        return producer_id in self._by_id

    def entries(self) -> Iterator[ProducerEntry]:
        """All producers, the longest idle first."""
        for producer_id, producer in self._by_id.items():
            yield ProducerEntry(
                producer_id,
                producer.producer_epoch,
                producer.last_sequence,
                producer.last_append_ms,
                tuple(DuplicateBatch(*packed) for packed in _BATCH.iter_unpack(producer.batches)),
            )

    def check(
        self, producer_id: int, producer_epoch: int, base_sequence: int, record_count: int
    ) -> DuplicateBatch | None:
        """Judge a batch before it is appended: None to go on, or the batch that it repeats.

        Raises:
            InvalidProducerEpoch: a newer epoch of this producer was seen.
            OutOfOrderSequence: a batch before this one is missing, or it was seen too long ago to know its offset.
        """
        producer = self._by_id.get(producer_id)
        if producer is None:
            if base_sequence and self.complete:
                raise OutOfOrderSequence(
                    f"producer {producer_id} is new here, and starts at sequence {base_sequence}, not 0"
                )
            return None
        if producer_epoch < producer.producer_epoch:
            raise InvalidProducerEpoch(
                f"producer {producer_id}: epoch {producer_epoch} is older than {producer.producer_epoch}"
            )
        if producer_epoch > producer.producer_epoch:
            if base_sequence != 0:
                raise OutOfOrderSequence(
                    f"producer {producer_id}: new epoch {producer_epoch} starts at sequence {base_sequence}, not 0"
                )
            return None
        if not producer.batches:
            return None
        last_sequence = producer.last_sequence
        if base_sequence == (last_sequence + 1) & _SEQUENCE_MASK:
            return None
        batch_last = (base_sequence + record_count - 1) & _SEQUENCE_MASK
        for packed in _BATCH.iter_unpack(producer.batches):
            if packed[0] == base_sequence and packed[1] == batch_last:
                return DuplicateBatch(*packed)
        raise OutOfOrderSequence(
            f"producer {producer_id} epoch {producer_epoch}: sequence {base_sequence} follows {last_sequence}"
        )

    def record(
        self,
        producer_id: int,
        producer_epoch: int,
        base_sequence: int,
        record_count: int,
        base_offset: int,
        log_append_time_ms: int,
        now_ms: int,
    ) -> None:
        """Remember a batch that was submitted at `base_offset`; `check` allowed it, or it is replayed from the log."""
        producer = self._by_id.pop(producer_id, None)
        is_new = producer is None
        if producer is None:
            producer = _Producer(producer_epoch)
            if len(self._by_id) >= MAX_PRODUCERS_PER_PARTITION:
                self.forget(next(iter(self._by_id)))
        elif producer_epoch != producer.producer_epoch:
            producer.producer_epoch = producer_epoch
            producer.batches = b""
        self._by_id[producer_id] = producer  # now the most recent
        producer.last_sequence = last_sequence = (base_sequence + record_count - 1) & _SEQUENCE_MASK
        newest = _BATCH.pack(base_sequence, last_sequence, base_offset, record_count, log_append_time_ms)
        producer.batches = producer.batches[-_OLDER_BATCHES_BYTES:] + newest
        producer.last_append_ms = now_ms
        if is_new and self._budget is not None:
            self._budget.added()

    def expire(self, before_ms: int) -> int:
        """Forget producers whose last append came before a time (`producer.id.expiration.ms`); returns how many."""
        expired = []
        for producer_id, producer in self._by_id.items():
            if producer.last_append_ms >= before_ms:
                break
            expired.append(producer_id)
        for producer_id in expired:
            self.forget(producer_id)
        return len(expired)

    def snapshot(self) -> bytes:
        """Everything, as bytes for a state block: versioned, with a CRC."""
        body = bytearray(_PREFIX.size)
        for producer_id, producer in self._by_id.items():
            count = len(producer.batches) // _BATCH.size
            body += _ENTRY.pack(producer_id, producer.producer_epoch, producer.last_append_ms, count)
            body += producer.batches
        _PREFIX.pack_into(body, 0, _MAGIC, _VERSION, 0, len(self._by_id), self.complete)
        struct.pack_into(">I", body, 4, crc32c(memoryview(body)[_CRC_FROM:]))
        return bytes(body)

    @classmethod
    def restore(cls, data: bytes) -> ProducerStates:
        """Read a snapshot.

        Raises:
            ProducerStateCorrupt: the bytes are damaged, or of a newer version.
        """
        states = cls()
        try:
            magic, version, crc, count = _PREFIX_1.unpack_from(data, 0)
            if magic != _MAGIC:
                raise ProducerStateCorrupt(f"producer state begins with {magic:#06x}, not {_MAGIC:#06x}")
            if version not in (1, _VERSION):
                raise ProducerStateCorrupt(
                    f"producer state has version {version}; this broker reads {_VERSION}: upgrade it"
                )
            if crc32c(memoryview(data)[_CRC_FROM:]) != crc:
                raise ProducerStateCorrupt("producer state does not match its CRC")
            prefix = _PREFIX_1 if version == 1 else _PREFIX
            states.complete = version > 1 and prefix.unpack_from(data, 0)[-1] == 1
            position = prefix.size
            for _ in range(count):
                producer_id, producer_epoch, last_append_ms, batches = _ENTRY.unpack_from(data, position)
                position += _ENTRY.size
                producer = _Producer(producer_epoch)
                producer.last_append_ms = last_append_ms
                end = position + batches * _BATCH.size
                producer.batches = bytes(data[position:end])
                if batches:
                    (_, producer.last_sequence, *_) = _BATCH.unpack_from(data, end - _BATCH.size)
                position = end
                states._by_id[producer_id] = producer
        except struct.error as error:
            raise ProducerStateCorrupt(f"producer state is cut short: {error}") from error
        if position != len(data):
            raise ProducerStateCorrupt(f"producer state has {len(data) - position} bytes too many")
        return states
