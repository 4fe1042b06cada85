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

__all__ = ["CODECS", "DEADLINE_S", "Client", "ClientUnavailable", "Record"]

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


class Client(Protocol):
    """A producer, a consumer without a group, and an administrator."""

    name: str
    keeps_timestamps: bool
    """Whether its producer lets the user set timestamps."""

    def check(self) -> None:
        """Raise ClientUnavailable where it is not installed."""

    def produce(
        self, topic: str, records: Sequence[Record], *, compression: str = "none", partition: int = 0, acks: int = -1
    ) -> None:
        """Send all records, in order, and return when all are acknowledged."""

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
