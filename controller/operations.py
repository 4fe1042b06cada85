"""What can be asked of the controller, by name: each method is one command.

Always true: times and random ids are put into the command here; what decides on it has neither clock nor randomness.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from controller.commands import Command
from controller.config import ControllerSettings
from controller.errors import ControllerError, UnknownTopic
from controller.image import Image, Topic
from controller.nodes import (
    ConfigureBroker,
    DeclareDead,
    NodeRegistration,
    RaiseMetadataVersion,
    RegisterNode,
    SuspectNode,
    UnregisterNode,
)
from controller.restoration import RestorePlan, RestoreTopics
from controller.streams import AbandonWal, ReassignStreams
from controller.topics import AddPartitions, ConfigureTopic, CreateTopics, DeleteTopics, NewTopic
from s3stream.metadata import StreamId

__all__ = ["Operations", "TopicSpec", "random_uuid"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic that is wanted; name and configs were validated by the caller."""

    name: str
    partition_count: int
    configs: Mapping[str, str] = field(default_factory=dict)


class Operations(ABC):
    """The commands of people and brokers. `submit` has them decided and committed."""

    _settings: ControllerSettings
    _now_ms: Callable[[], int]
    _rng: random.Random

    @property
    @abstractmethod
    def image(self) -> Image:
        """What is committed, as far as this node has read."""

    @abstractmethod
    async def submit(self, command: Command[R]) -> R:
        """Have a command decided and committed, and the image brought up to it. Raises its errors."""

    async def register_node(
        self,
        node_id: int,
        wal_id: str,
        *,
        wal_epoch: int = 0,
        allotted_epoch: int = -1,
        set_aside: Sequence[str] = (),
        address: str = "",
        rack: str = "",
        lease_ms: int = 0,
        controller_address: str = "",
        wal_uri: str = "",
        wal_host: str = "",
    ) -> NodeRegistration:
        """Register a node that came up, fencing its earlier registrations.

        Raises:
            NodeRefused: its WAL is not the one that its streams are open on; the message says what to do.
        """
        return await self.submit(
            RegisterNode(
                node_id=node_id,
                wal_id=wal_id,
                wal_epoch=wal_epoch,
                allotted_epoch=allotted_epoch,
                set_aside=tuple(set_aside),
                address=address,
                rack=rack,
                lease_ms=lease_ms,
                controller_address=controller_address,
                wal_uri=wal_uri,
                wal_host=wal_host,
                at_ms=self._now_ms(),
            )
        )

    async def suspect_node(self, node_id: int, node_epoch: int) -> bool:
        """Have a registration suspected that is not heard from; False: it cannot be (see `SuspectNode`)."""
        return await self.submit(SuspectNode(node_id=node_id, node_epoch=node_epoch, at_ms=self._now_ms()))

    async def declare_dead(self, node_id: int, node_epoch: int) -> bool:
        """Take a suspected registration for dead, whose lease surely ran out; False: it was trusted again, or registered anew."""
        return await self.submit(DeclareDead(node_id=node_id, node_epoch=node_epoch, at_ms=self._now_ms()))

    async def raise_metadata_version(self, metadata_version: int) -> None:
        """Put a version in force that all nodes understand."""
        await self.submit(RaiseMetadataVersion(metadata_version=metadata_version))

    async def unregister_node(self, node_id: int) -> None:
        """Remove a node that leads nothing. Raises NodeRefused."""
        await self.submit(UnregisterNode(node_id=node_id))

    async def create_topics(
        self, specs: Sequence[TopicSpec], *, leaders: Sequence[int] = ()
    ) -> Mapping[str, Topic | ControllerError]:
        """Create topics, each for itself; the answer has a topic or TopicExists, TooManyPartitions, NoNodes by name
        (or UnknownTopic, where somebody deleted it at once).

        `leaders` are the nodes that may lead the partitions; empty: every registered one.
        """
        topics = tuple(
            NewTopic(
                name=spec.name,
                topic_id=random_uuid(self._rng),
                partition_count=spec.partition_count,
                configs=spec.configs,
                leaders=tuple(leaders),
            )
            for spec in specs
        )
        made = await self.submit(
            CreateTopics(topics=topics, max_partitions=self._settings.max_partitions, at_ms=self._now_ms())
        )
        return {
            name: outcome if isinstance(outcome, ControllerError) else self._created(name, outcome)
            for name, outcome in made.items()
        }

    def _created(self, name: str, topic_id: bytes) -> Topic | UnknownTopic:
        """A topic that was created; where entries of others came through together with ours, it may be gone by now."""
        return self.image.topic_by_id(topic_id) or UnknownTopic(f"topic {name} was deleted right after it was created")

    async def delete_topics(self, topic_ids: Sequence[bytes]) -> Mapping[bytes, ControllerError | None]:
        """Delete topics; the answer has None or UnknownTopic by id. The names are free at once."""
        return await self.submit(DeleteTopics(topic_ids=tuple(topic_ids), at_ms=self._now_ms()))

    async def add_partitions(self, topic_id: bytes, partition_count: int) -> None:
        """Give a topic partitions until it has so many.

        Raises:
            UnknownTopic, InvalidPartitionCount, TooManyPartitions, NoNodes: it stays as it is.
        """
        await self.submit(
            AddPartitions(
                topic_id=topic_id, partition_count=partition_count, max_partitions=self._settings.max_partitions
            )
        )

    async def configure_topic(
        self, topic_id: bytes, changes: Mapping[str, str | None], *, expected: Mapping[str, str] | None = None
    ) -> None:
        """Set configs, and remove those given as None; `expected` is what the change was computed from.

        Raises:
            UnknownTopic, ConfigsChanged: they stay as they are.
        """
        await self.submit(ConfigureTopic(topic_id=topic_id, changes=dict(changes), expected=expected))

    async def configure_broker(
        self, node_id: int, changes: Mapping[str, str | None], *, expected: Mapping[str, str] | None = None
    ) -> None:
        """Alter settings of a node, or of all (`ALL_NODES`), and take back those given as None. Raises ConfigsChanged."""
        await self.submit(ConfigureBroker(node_id=node_id, changes=dict(changes), expected=expected))

    async def reassign(self, targets: Mapping[StreamId, int]) -> None:
        """Have streams go to other nodes; -1 ends a reassignment under way. Raises UnknownNode."""
        await self.submit(ReassignStreams(targets=dict(targets)))

    async def abandon_wal(
        self,
        wal_id: str,
        *,
        slack_offsets: int,
        resume_offsets: Mapping[StreamId, int] | None = None,
        kept: Collection[StreamId] = (),
    ) -> Mapping[StreamId, tuple[int, int]]:
        """Give up a WAL that is lost for good; returns the gap [start, end) of each partition that was open on it.

        `resume_offsets` and `kept`: see `AbandonWal`.
        """
        return await self.submit(
            AbandonWal(
                wal_id=wal_id,
                slack_offsets=slack_offsets,
                resume_offsets=dict(resume_offsets or {}),
                kept=frozenset(kept),
                at_ms=self._now_ms(),
            )
        )

    async def restore_topics(self, command: RestoreTopics, *, expected: RestorePlan) -> RestorePlan:
        """Take topics back to what they were, exactly as planned. Raises RestoreRefused."""
        return await self.submit(replace(command, expected=expected))


def random_uuid(rng: random.Random) -> bytes:
    """A version 4 UUID, so never one of the ids that Kafka reserves (zero and one)."""
    value = bytearray(rng.randbytes(16))
    value[6] = value[6] & 0x0F | 0x40
    value[8] = value[8] & 0x3F | 0x80
    return bytes(value)
