"""What a test asks of a Kafka client: a port that each real client is fitted to.

Always true of an adapter:
- It uses the client as a user would: its public API, with its defaults wherever a test does not say.
- A call opens its own producer or consumer and closes it, so that no test sees another's connections.
- It raises the client's own exception for what the broker refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["CODECS", "DEADLINE_S", "Client", "ClientUnavailable", "Member", "Progress", "Record"]

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
DEADLINE_S = 30.0
"""A client that has not done its work by then has failed."""


class ClientUnavailable(Exception):
    """The client is not installed; the message says how to install it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record, as produced (without an offset) or as consumed."""

    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a group member has, and what it read since it was last asked."""

    assigned: frozenset[int]
    """Its partitions of the topic."""
    records: tuple[tuple[int, Record], ...]
    """Partition and record, in the order of reading."""


class Member(Protocol):
    """A consumer in a group. It polls in the background, and commits what it has read after each poll."""

    def progress(self) -> Progress:
        """What it has and what is new. Raises what it failed with."""

    def leave(self) -> None:
        """Close it as its user would. A static member stays in the group until its session ends."""


class Client(Protocol):
    """A producer, a consumer with and without a group, and an administrator."""

    name: str
    keeps_timestamps: bool
    """Whether its producer lets the user set timestamps."""
    codecs: tuple[str, ...]
    """The codecs that it can do here."""
    cannot_read: tuple[str, ...]
    """Those of them that it cannot read where another client wrote."""
    assignors: tuple[str, ...]
    """How it shares out partitions in a group, by Kafka's names for the protocols where it uses those."""
    static_membership: bool
    """Whether it knows `group.instance.id` (KIP-345)."""

    def check(self) -> None:
        """Raise ClientUnavailable where it is not installed."""

    @property
    def version(self) -> str:
        """Its own version, as the running client tells it."""

    def produce(
        self,
        topic: str,
        records: Sequence[Record],
        *,
        compression: str = "none",
        partition: int = 0,
        acks: int = -1,
        idempotent: bool = False,
        pause_ms: int = 0,
    ) -> None:
        """Send all records, in order, with a pause after each, and return when all are acknowledged."""

    def consume(self, topic: str, *, offset: int = 0, count: int, partition: int = 0) -> list[Record]:
        """The `count` records from `offset` on."""

    def offset_for_timestamp(self, topic: str, timestamp_ms: int, partition: int = 0) -> int | None:
        """Offset of the first record at or past a time; None where there is none."""

    def create_topic(self, topic: str, partitions: int, configs: dict[str, str] | None = None) -> None:
        """Create a topic; returns when the broker said so."""

    def delete_topic(self, topic: str) -> None:
        """Delete a topic; returns when the broker said so."""

    def partitions(self, topic: str) -> set[int] | None:
        """Partition indexes of a topic, None where there is no such topic. Creates none."""

    def join(self, topic: str, group: str, *, assignor: str, instance_id: str = "", limit: int = 0) -> Member:
        """Join a group, from the beginning of what it has not committed. `limit`: read and commit no more than that."""

    def committed(self, topic: str, group: str) -> dict[int, int]:
        """The committed offset of each partition that has one."""
