"""Gives partitions away that are to go to another node: no data moves, only who serves it.

The order of a move: what gathered is uploaded while the partition is served as ever; then it takes no more records, the little that came
meanwhile is made durable and uploaded; then its close is committed, with the offset at which it ends. The other node sees that, opens it under the
next leader epoch, and goes on there.

Always true:
- Fetch is served until the close is committed; nothing is acknowledged after that (I4), and nothing that was is missing (I1).
- All partitions that are to go at the same time go as one: one upload, one entry of the metadata log.
- What cannot be done now is tried again. A reassignment that is ended in time leaves the partition alone; later it is closed, and opened here again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from s3stream.errors import StorageError
from s3stream.objectstore import ObjectStoreError

if TYPE_CHECKING:
    from broker.partition import Partition
    from broker.partitions import Partitions
    from broker.topics import Topic, Topics
    from s3stream.metadata import StreamId
    from s3stream.storage import Storage

__all__ = ["Handover"]

log = logging.getLogger("tidelog.partitions")

RETRY_DELAY_S = 1.0


class Handover:
    """What leaves this node."""

    def __init__(self, *, node_id: int, storage: Storage, partitions: Partitions, topics: Topics) -> None:
        self._node_id = node_id
        self._storage = storage
        self._partitions = partitions
        self._topics = topics
        self._wanted: set[StreamId] = set()
        self._leaving: dict[StreamId, Partition] = {}
        """They take no more records. Whether their close is committed may be open, so there is no way back: they are closed, and
        opened again where the metadata wants them by then."""
        self._event = asyncio.Event()
        self.moved = 0
        """Partitions given away since start."""

    def look(self, topics: Iterable[Topic]) -> None:
        """The metadata changed something of these topics: note what is to go, and what is to stay after all."""
        for topic in topics:
            for state in topic.info.partitions:
                if state.leader == self._node_id and state.is_open and state.target != -1:
                    self._wanted.add(state.stream_id)
                else:
                    self._wanted.discard(state.stream_id)
        if self._wanted:
            self._event.set()

    async def run(self) -> None:
        """Give away until cancelled, or until this node acknowledges nothing more."""
        while self._storage.failed is None:
            await self._event.wait()
            self._event.clear()
            try:
                await self._give()
            except (StorageError, ObjectStoreError) as error:
                log.warning(
                    "partitions cannot be given away yet: %(error)s (%(count)d of them)",
                    {"count": len(self._wanted | self._leaving.keys()), "error": error},
                )
            if self._wanted - self._leaving.keys() or self._leaving:  # the former are being opened just now
                asyncio.get_running_loop().call_later(RETRY_DELAY_S, self._event.set)

    async def _give(self) -> None:
        storage = self._storage
        storage.seal()
        await storage.uploads.drain()
        for stream_id in sorted(self._wanted):
            partition = self._partitions.get(stream_id)
            if partition is not None:
                partition.leave()
                self._leaving[stream_id] = partition
                self._wanted.discard(stream_id)
        if not self._leaving:
            return
        self._partitions.on_changed()
        await storage.release([partition.stream for partition in self._leaving.values()])
        gone, self._leaving = list(self._leaving.values()), {}
        self._partitions.gave(gone)
        self.moved += len(gone)
        log.info("partitions were given to other nodes: %(count)d", {"count": len(gone)})
        # Back by now, or not to go after all: open it anew.
        topics = {topic for partition in gone if (topic := self._topics.by_id.get(partition.topic_id)) is not None}
        self._partitions.want(topics)
