"""The metadata as one node's storage engine uses it: `s3stream.metadata.StreamMetadata`, bound to a registration.

Always true: every change carries the node epoch, so a superseded registration raises `NodeFenced` and changes nothing;
reads show the committed image.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from controller.commands import Command
from controller.committed import CommittedMetadata
from controller.image import Image
from controller.nodes import HEALTH_SINCE, DescribeNode, LeaveCluster
from controller.objects import AllocateObjectIds, AllocateProducerIds, Commit, ExpireObjects, ForgetObjects
from controller.streams import CloseStreams, GiveBackWal, OpenStreams, RecoverWal, TrimStreams
from controller.tables import NodeStatus
from s3stream.metadata import (
    CommitObjects,
    CommitResult,
    ObjectId,
    OpenedStream,
    StreamId,
)

__all__ = ["CommandPort", "NodeMetadata"]

R = TypeVar("R")


class CommandPort(Protocol):
    """Where commands go: the controller, here or elsewhere."""

    @property
    def image(self) -> Image:
        """The committed image on this node."""

    def now_ms(self) -> int:
        """Wall-clock time, ms since the epoch."""

    async def submit(self, command: Command[R]) -> R:
        """Have a command decided and committed, and the image brought up to it. Raises its errors."""

    async def refresh(self) -> None:
        """Read the log to its tail. Raises MetadataUnavailable."""


class NodeMetadata(CommittedMetadata):
    """Implements `StreamMetadata`; and what the collector and producer id allocation need; inherits the reads."""

    def __init__(self, port: CommandPort, *, node_id: int, node_epoch: int, object_id_block_size: int) -> None:
        super().__init__(port)
        self._port = port
        self.node_id = node_id
        self.node_epoch = node_epoch
        self._object_id_block_size = object_id_block_size
        self._object_ids = range(0)
        self._allocation = asyncio.Lock()

    async def catch_up(self) -> None:
        """Read the metadata log to its tail. Raises MetadataUnavailable."""
        await self._port.refresh()

    def node_status(self, node_id: int) -> NodeStatus:
        """Whether a node serves, as far as this one has read the metadata."""
        return self._port.image.node_status(node_id)

    async def describe(self, *, lease_ms: int, controller_address: str, wal_uri: str, wal_host: str) -> None:
        """Complete a registration that was made under an older metadata version. Raises NodeFenced."""
        await self._port.submit(
            DescribeNode(
                node_id=self.node_id,
                node_epoch=self.node_epoch,
                lease_ms=lease_ms,
                controller_address=controller_address,
                wal_uri=wal_uri,
                wal_host=wal_host,
            )
        )

    async def complete_registration(
        self, *, lease_ms: int, controller_address: str, wal_uri: str, wal_host: str
    ) -> None:
        """`describe`, where it is needed and possible by now. Raises NodeFenced."""
        image = self._port.image
        node = image.node(self.node_id)
        if node is None or node.node_epoch != self.node_epoch or image.metadata_version < HEALTH_SINCE:
            return
        known = node.lease_ms, node.controller_address, node.wal_uri, node.wal_host
        if known != (lease_ms, controller_address, wal_uri, wal_host) and node.status is NodeStatus.ALIVE:
            await self.describe(
                lease_ms=lease_ms, controller_address=controller_address, wal_uri=wal_uri, wal_host=wal_host
            )

    async def tell_wal_epoch(self, wal_epoch: int) -> None:
        """Have copies of this node's WAL refused that are older than its recovery just now. Raises NodeFenced, MetadataUnavailable."""
        image = self._port.image
        node = image.node(self.node_id)
        if node is None or node.node_epoch != self.node_epoch:
            return  # whoever is this node by now is told of it by its next command
        if image.metadata_version < HEALTH_SINCE:
            return  # a leader of then does not know the command, and would be asked again and again
        await self._port.submit(
            DescribeNode(
                node_id=self.node_id,
                node_epoch=self.node_epoch,
                lease_ms=node.lease_ms,
                controller_address=node.controller_address,
                wal_uri=node.wal_uri,
                wal_host=node.wal_host,
                wal_epoch=wal_epoch,
            )
        )

    async def leave_cluster(self) -> bool:
        """Say that this node serves nothing any more: commands of it are refused from now on; False: it still has partitions open."""
        return await self._port.submit(
            LeaveCluster(node_id=self.node_id, node_epoch=self.node_epoch, at_ms=self._port.now_ms())
        )

    async def new_object_ids(self, count: int) -> Sequence[ObjectId]:
        """Ids never given out before; taken from the log in blocks, so that most calls cost nothing."""
        ids: list[ObjectId] = []
        async with self._allocation:
            while len(ids) < count:
                if not self._object_ids:
                    self._object_ids = await self._port.submit(
                        AllocateObjectIds(
                            node_id=self.node_id,
                            node_epoch=self.node_epoch,
                            count=max(self._object_id_block_size, count - len(ids)),
                        )
                    )
                taken = self._object_ids[: count - len(ids)]
                self._object_ids = self._object_ids[len(taken) :]
                ids.extend(map(ObjectId, taken))
        return ids

    async def allocate_producer_ids(self, count: int = 1_000) -> range:
        """A block of producer ids (KIP-730)."""
        return await self._port.submit(
            AllocateProducerIds(node_id=self.node_id, node_epoch=self.node_epoch, count=count)
        )

    async def commit_objects(self, commit: CommitObjects) -> CommitResult:
        """Reference new objects. Idempotent by object id. Raises ObjectExpired, SourcesChanged."""
        return await self._port.submit(
            Commit(node_id=self.node_id, node_epoch=self.node_epoch, commit=commit, at_ms=self._port.now_ms())
        )

    async def open_streams(self, stream_ids: Sequence[StreamId]) -> Sequence[OpenedStream]:
        """Open streams on this node's WAL; deleted ones, those that another node holds, and those of which the metadata changed on the way are left
        out of the answer."""
        if not stream_ids:
            return ()
        streams = [stream for stream_id in stream_ids if (stream := self._stream(stream_id)) is not None]
        return await self._port.submit(
            OpenStreams(
                node_id=self.node_id,
                node_epoch=self.node_epoch,
                stream_ids=tuple(stream_ids),
                leader_epochs={stream.stream_id: stream.leader_epoch for stream in streams},
            )
        )

    async def recover_wal(self, wal_id: str) -> Sequence[OpenedStream]:
        """Take over every stream that is open on another WAL, which nobody writes to any more; see `RecoverWal`."""
        streams = self._port.image.state.tables.streams.values()
        return await self._port.submit(
            RecoverWal(
                node_id=self.node_id,
                node_epoch=self.node_epoch,
                wal_id=wal_id,
                leader_epochs={stream.stream_id: stream.leader_epoch for stream in streams if stream.wal_id == wal_id},
            )
        )

    async def give_back_wal(self, wal_id: str) -> bool:
        """Let others recover a WAL that this node took over; False: there was nothing to give back."""
        return await self._port.submit(GiveBackWal(node_id=self.node_id, node_epoch=self.node_epoch, wal_id=wal_id))

    async def close_streams(self, end_offsets: Mapping[StreamId, int], leader_epochs: Mapping[StreamId, int]) -> None:
        """Close streams, all committed up to the given ends (else StreamNotDrained); those not held under these epochs any more are left alone."""
        if end_offsets:
            await self._port.submit(
                CloseStreams(
                    node_id=self.node_id,
                    node_epoch=self.node_epoch,
                    end_offsets=dict(end_offsets),
                    leader_epochs=dict(leader_epochs),
                )
            )

    async def trim_streams(self, log_start_offsets: Mapping[StreamId, int]) -> None:
        """Raise log start offsets, each at most to the committed end: trim again after the next upload for more."""
        if log_start_offsets:
            await self._port.submit(
                TrimStreams(
                    node_id=self.node_id,
                    node_epoch=self.node_epoch,
                    log_start_offsets=dict(log_start_offsets),
                    at_ms=self._port.now_ms(),
                )
            )

    async def expire_objects(self, object_ids: Sequence[ObjectId]) -> Sequence[ObjectId]:
        """Make ids unusable for ever; returns those whose objects may now be deleted (referenced ones are left out)."""
        return await self._port.submit(ExpireObjects(object_ids=tuple(object_ids))) if object_ids else ()

    async def forget_objects(self, object_ids: Sequence[ObjectId]) -> None:
        """Report expired objects as deleted from the store."""
        if object_ids:
            await self._port.submit(ForgetObjects(object_ids=tuple(object_ids)))
