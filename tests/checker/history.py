"""What clients sent, were promised and saw, and whether a log kept its promises. Pure: no clock, no I/O.

Always true:
- A record is named by (partition, producer, number): numbers of one producer ascend in the order in which it sent
  them to that partition. `digest` stands for all of its bytes: key, value, headers, timestamp.
- The history knows nothing of how the log works inside. It holds a broker to what a client can see:
  1. An acknowledged record is at its offset, with its bytes, unless the log start offset has passed it (I1).
  2. Offsets of the final log are dense (I2).
  3. What any reader saw at an offset stays there, acknowledged or not: the high watermark never goes back (I3).
  4. An idempotent producer's records are there at most once, in the order sent (I11).
  5. Nothing is there that nobody sent, and no byte of it has changed (I7).
- What was sent and never acknowledged may be there or not.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["FinalLog", "Found", "History", "Kind", "Violation", "check"]

_MAX_VIOLATIONS_PER_KIND = 5
"""In one partition: one fault shows in thousands of records, and the first ones tell it all."""


class Kind(enum.Enum):
    """What a broken promise is called."""

    LOSS = "loss"
    DUPLICATION = "duplication"
    REORDER = "reorder"
    WRONG_OFFSET = "wrong offset"
    CORRUPTION = "corruption"
    GAP = "gap in the offsets"
    WENT_BACK = "high watermark went back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken promise."""

    kind: Kind
    partition: str
    offset: int
    message: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.partition} at offset {self.offset}: {self.message}"


class Found(NamedTuple):
    """A record as a reader found it."""

    offset: int
    producer: str
    number: int
    digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalLog:
    """A partition read from its start to its end, after everything has come to rest."""

    log_start_offset: int
    log_end_offset: int
    """Exclusive."""
    found: Sequence[Found]


class History:
    """Everything that clients sent, were promised and saw; append-only."""

    def __init__(self) -> None:
        self._idempotent: set[str] = set()
        self._sent: dict[tuple[str, str, int], int] = {}
        self._acknowledged: dict[tuple[str, str, int], int] = {}
        self._at_offset: dict[tuple[str, int], tuple[str, int]] = {}
        self._seen: dict[tuple[str, int], Found] = {}
        self._early: list[Violation] = []

    @property
    def sent_count(self) -> int:
        """Records handed to a producer."""
        return len(self._sent)

    @property
    def acknowledged_count(self) -> int:
        """Records whose producer was told an offset."""
        return len(self._acknowledged)

    @property
    def seen_count(self) -> int:
        """Offsets that some reader saw."""
        return len(self._seen)

    def idempotent(self, producer: str) -> None:
        """This producer asks for exactly-once, in-order delivery."""
        self._idempotent.add(producer)

    def sent(self, partition: str, producer: str, number: int, digest: int) -> None:
        """A record was handed to its producer; sending it again changes nothing."""
        known = self._sent.setdefault((partition, producer, number), digest)
        assert known == digest, f"{producer} sent two different records as number {number} to {partition}"

    def acknowledged(self, partition: str, producer: str, number: int, offset: int) -> None:
        """A producer was told that its record is at `offset`."""
        record = (partition, producer, number)
        assert record in self._sent, f"{record} was acknowledged before it was sent"
        if producer in self._idempotent:
            before = self._acknowledged.setdefault(record, offset)
            if before != offset:
                self._violate(
                    Kind.DUPLICATION, partition, offset, f"{producer}/{number} was acknowledged before, at {before}"
                )
        else:
            self._acknowledged[record] = offset
        holder = self._at_offset.setdefault((partition, offset), (producer, number))
        if holder != (producer, number):
            self._violate(
                Kind.WRONG_OFFSET,
                partition,
                offset,
                f"acknowledged to {producer}/{number}, and before to {holder[0]}/{holder[1]}",
            )

    def seen(self, partition: str, found: Iterable[Found]) -> None:
        """A reader was given these records, at any time: from then on they are promised to whoever reads there."""
        for record in found:
            before = self._seen.setdefault((partition, record.offset), record)
            if before != record:
                self._violate(
                    Kind.WENT_BACK, partition, record.offset, f"was {_name(before)} and became {_name(record)}"
                )

    def _violate(self, kind: Kind, partition: str, offset: int, message: str) -> None:
        self._early.append(Violation(kind=kind, partition=partition, offset=offset, message=message))

    def partitions(self) -> set[str]:
        """Every partition that anything was sent to."""
        return {partition for partition, _, _ in self._sent}

    def check(self, final: Mapping[str, FinalLog]) -> list[Violation]:
        """Every broken promise, given the final content of each partition that still exists."""
        violations = list(self._early)
        acknowledged: dict[str, list[tuple[int, str, int]]] = {}
        for (partition, producer, number), offset in self._acknowledged.items():
            acknowledged.setdefault(partition, []).append((offset, producer, number))
        seen: dict[str, list[Found]] = {}
        for (partition, _), record in self._seen.items():
            seen.setdefault(partition, []).append(record)
        for partition, log in final.items():
            told: Counter[Kind] = Counter()
            for violation in self._check_partition(
                partition, log, sorted(acknowledged.get(partition, ())), sorted(seen.get(partition, ()))
            ):
                told[violation.kind] += 1
                if told[violation.kind] <= _MAX_VIOLATIONS_PER_KIND:
                    violations.append(violation)
        return violations

    def _check_partition(
        self,
        partition: str,
        log: FinalLog,
        acknowledged: Sequence[tuple[int, str, int]],
        seen: Sequence[Found],
    ) -> Iterator[Violation]:
        def violation(kind: Kind, offset: int, message: str) -> Violation:
            return Violation(kind=kind, partition=partition, offset=offset, message=message)

        places: dict[tuple[str, int], list[int]] = {}
        at: dict[int, Found] = {}
        newest: dict[str, int] = {}
        expected = log.log_start_offset
        for record in log.found:
            if record.offset != expected:
                yield violation(Kind.GAP, record.offset, f"the reader expected offset {expected}")
            expected = record.offset + 1
            at[record.offset] = record
            name = (record.producer, record.number)
            digest = self._sent.get((partition, *name))
            if digest is None:
                yield violation(Kind.CORRUPTION, record.offset, f"nobody sent {_name(record)}")
                continue
            if digest != record.digest:
                yield violation(Kind.CORRUPTION, record.offset, f"the bytes of {_name(record)} changed")
            earlier = places.setdefault(name, [])
            earlier.append(record.offset)
            if record.producer not in self._idempotent:
                continue
            if len(earlier) > 1:
                yield violation(Kind.DUPLICATION, record.offset, f"{_name(record)} is at {earlier[0]} as well")
            elif record.number < newest.get(record.producer, -1):
                behind = f"{record.producer}/{newest[record.producer]}"
                yield violation(Kind.REORDER, record.offset, f"{_name(record)} comes after {behind}")
            newest[record.producer] = max(record.number, newest.get(record.producer, -1))
        if expected != log.log_end_offset:
            yield violation(Kind.GAP, expected, f"reading ended here, and the log at {log.log_end_offset}")

        for offset, producer, number in acknowledged:
            if offset < log.log_start_offset:
                continue  # retention may have it
            there = at.get(offset)
            if there is not None and (there.producer, there.number) == (producer, number):
                continue
            elsewhere = places.get((producer, number))
            if elsewhere:
                yield violation(Kind.WRONG_OFFSET, offset, f"acknowledged {producer}/{number} is at {elsewhere}")
            else:
                instead = "nothing" if there is None else _name(there)
                yield violation(Kind.LOSS, offset, f"acknowledged {producer}/{number} is gone; there is {instead}")
        for record in seen:
            if record.offset >= log.log_start_offset and at.get(record.offset) != record:
                now = at.get(record.offset)
                instead = "nothing" if now is None else _name(now)
                yield violation(Kind.WENT_BACK, record.offset, f"a reader saw {_name(record)}; there is {instead}")


def check(history: History, final: Mapping[str, FinalLog]) -> None:
    """Raise AssertionError that lists every violation, if there is any."""
    violations = history.check(final)
    if violations:
        raise AssertionError("\n".join(map(str, violations)))


def _name(record: Found) -> str:
    return f"{record.producer}/{record.number}"
