"""Commands that wait, and those that were decided together and become one entry."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec

from controller.commands import Command
from controller.records import Record

__all__ = ["Batch", "Waiting"]


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A command and whoever waits for its outcome."""

    command: Command[Any]
    future: asyncio.Future[Any]

    def resolve(self, outcome: Any) -> None:
        """Give a reply, or raise an exception there; nothing where nobody waits any more."""
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


@dataclass(slots=True)
class Batch:
    """Decided commands. Each record is encoded once, so that the size is known while it grows."""

    members: list[Waiting] = field(default_factory=list)
    outcomes: list[Any] = field(default_factory=list)
    """By member: a reply, or the exception to raise."""
    records: list[Record] = field(default_factory=list)
    size_bytes: int = 0
    _encoded: list[msgspec.Raw] = field(default_factory=list)

    def add(self, record: Record) -> None:
        encoded = msgspec.msgpack.encode(record)
        self.records.append(record)
        self._encoded.append(msgspec.Raw(encoded))
        self.size_bytes += len(encoded)

    def body(self) -> bytes:
        """The records as an entry holds them."""
        return msgspec.msgpack.encode(self._encoded)

    def resolve(self) -> None:
        """Give each member its outcome."""
        for member, outcome in zip(self.members, self.outcomes, strict=True):
            member.resolve(outcome)

    def refuse(self, error: Exception) -> None:
        """Give every member the same error."""
        for member in self.members:
            member.resolve(error)
