"""Gives partitions away that are to go to another node: no data moves, only who serves it.

The order of a move: what gathered is uploaded while the partition is served as ever; then it takes no more records, the little that came
meanwhile is made durable and uploaded; then its close is committed, with the offset at which it ends. The other node sees that, opens it under the
next leader epoch, and goes on there. Many partitions go in waves, so that each is away only for as long as its own wave takes.

Always true:
- Readers are served until the close is sent, and sent on from then: it may be committed, and the next owner be further than what is known
  here (I3). Nothing is acknowledged any more (I4), and nothing that was is missing (I1).
- A wave goes as one: one upload, one entry of the metadata log. It begins when little is left to be uploaded; where that does not come
  about, since producers are as fast as uploads, all go as one wave: that ends it.
- What cannot be done now is tried again. A reassignment that is ended in time leaves the partition alone; later it is closed, and opened here again.
"""

from __future__ import annotations

import asyncio
import logging
import math
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

WAVE_PARTITIONS = 128
"""What goes at a time. The fixed costs of a wave are some tenths of a second; what grows with it is states to be read at the other end."""

SMALL_UPLOAD_BYTES = 8 << 20
"""So much is uploaded in less time than the round trips of a wave take."""

MAX_UPLOADS_BEFORE = 16
PROGRESS = 0.8
"""Each leaves what came in meanwhile, which should be at most so much of what there was before: else producers are about as fast as uploads,
and no more of them helps."""


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
        while self._wanted or self._leaving:
            most = WAVE_PARTITIONS if await self._upload_most() else len(self._wanted) + len(self._leaving)
            if not await self._give_wave(most):
                return

    async def _upload_most(self) -> bool:
        """Leave little to be uploaded, while partitions are served; False: producers are too fast for that."""
        storage = self._storage
        before_bytes = math.inf
        for _ in range(MAX_UPLOADS_BEFORE):
            storage.seal()
            await storage.uploads.drain()
            left_bytes = storage.unuploaded_bytes
            if left_bytes <= SMALL_UPLOAD_BYTES:
                return True
            if left_bytes > before_bytes * PROGRESS:
                break
            before_bytes = left_bytes
        return False

    async def _give_wave(self, most: int) -> bool:
        """Give away so many partitions; False: there are none that can go now."""
        for stream_id in sorted(self._wanted):
            if len(self._leaving) >= most:
                break
            partition = self._partitions.get(stream_id)
            if partition is not None:
                partition.leave()
                self._leaving[stream_id] = partition
                self._wanted.discard(stream_id)
        if not self._leaving:
            return False
        self._partitions.on_changed()
        await self._storage.release([partition.stream for partition in self._leaving.values()])
        gone, self._leaving = list(self._leaving.values()), {}
        self._partitions.gave(gone)
        self.moved += len(gone)
        log.info("partitions were given to other nodes: %(count)d", {"count": len(gone)})
        # Back by now, or not to go after all: open it anew.
        topics = {topic for partition in gone if (topic := self._topics.by_id.get(partition.topic_id)) is not None}
        self._partitions.want(topics)
        return True
