"""Opens the partitions that the metadata gives to this node, rebuilds their state, and closes those that are taken away.

Always true:
- One task opens, in batches: everything that is wanted at that moment is one command to the metadata log.
- Producer state is rebuilt by a bounded number of tasks; a partition that was never written is ready at once. Those that
  producers ask for come first.
- A load that fails because the object store does not answer is tried again for ever, with back-off: the
  partition answers produce with a retriable error meanwhile, and serves fetch. So is one that fails for damaged data, less
  often: the object may be restored, or the damage given up, while the node runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from broker.partition import Partition
from broker.producer_state import ProducerBudget
from s3stream.errors import MetadataUnavailable, NodeFenced, ObjectCorrupt, StorageError, StreamClosed
from s3stream.metadata import StreamId
from s3stream.objectstore import ObjectStoreError

if TYPE_CHECKING:
    from broker.topics import Topic, Topics
    from controller.image import Image
    from s3stream.storage import Storage
    from s3stream.stream import Stream

__all__ = ["LOADERS", "Partitions"]

log = logging.getLogger("tidelog.partitions")

LOADERS = 16
"""States rebuilt at the same time: enough to hide the object store's latency, few enough to leave it to consumers."""

RETRY_DELAY_S = 1.0

OFFLINE_RETRY_DELAY_S = 5.0
"""Until a partition is looked at again whose data is damaged: each time that data is read."""

EXPIRY_INTERVAL_S = 600.0
"""How often idle producer ids are looked for (`producer.id.expiration.check.interval.ms` of Kafka)."""


class Partitions:
    """The partitions of this node."""

    def __init__(
        self,
        *,
        node_id: int,
        storage: Storage,
        image: Image,
        topics: Topics,
        producer_budget: ProducerBudget,
        producer_id_expiration_ms: int,
        now_ms: Callable[[], int],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._node_id = node_id
        self._storage = storage
        self._image = image
        self._topics = topics
        self._producer_budget = producer_budget
        self._producer_id_expiration_ms = producer_id_expiration_ms
        self._now_ms = now_ms
        self._on_failed = on_failed
        self._by_stream: dict[StreamId, Partition] = {}
        self._to_open: dict[StreamId, None] = {}
        self._opening: set[StreamId] = set()
        self._changed_meanwhile: set[StreamId] = set()
        """Of those that are being opened: to be looked at again, where the answer leaves them out."""
        self._offline: dict[StreamId, Topic] = {}
        self._to_load: dict[StreamId, Partition] = {}
        self._open_event = asyncio.Event()
        self._load_event = asyncio.Event()
        self._opened = asyncio.Event()
        self._loading = 0
        self._loaded = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._retries: dict[StreamId, asyncio.TimerHandle] = {}
        """When offline partitions are looked at again."""
        self.on_arrived: Callable[[StreamId], None] = lambda stream_id: None
        """Called when a partition was opened here, and when it takes records as well."""
        self.on_changed: Callable[[], None] = lambda: None
        """Called after partitions were opened or closed here."""

    def __len__(self) -> int:
        return len(self._by_stream)

    def __iter__(self) -> Iterator[Partition]:
        return iter(list(self._by_stream.values()))

    @property
    def loading_count(self) -> int:
        """Partitions whose state is not rebuilt yet, but for those that are offline."""
        return sum(1 for partition in self._to_load.values() if partition.offline is None) + self._loading

    @property
    def offline_count(self) -> int:
        """Partitions that take no records for damage, of the WAL or of objects."""
        return len(self._offline) + sum(1 for partition in self._by_stream.values() if partition.offline is not None)

    def set_offline(self, stream_id: StreamId, why: str) -> None:
        """A partition of this node cannot be opened, until it can: nobody waits for it, and clients are told."""
        place = self._image.partition_of(stream_id)
        topic = None if place is None else self._topics.by_id.get(place[0])
        if place is not None and topic is not None:
            self._offline[stream_id] = topic
            topic.offline[place[1]] = why

    def run(self) -> None:
        """Start the tasks."""
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._open_wanted()))
        self._tasks.append(loop.create_task(self._expire_producers()))
        self._tasks.extend(loop.create_task(self._load_wanted()) for _ in range(LOADERS))
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Cancel and await the tasks. The streams belong to the storage engine, which closes them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for retry in self._retries.values():
            retry.cancel()
        self._retries.clear()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Without any of its tasks a node would seem well, and open no partition any more: it stops instead."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            if not isinstance(error, NodeFenced):
                log.error("partitions cannot be opened any more", exc_info=error)
            self._on_failed(error)

    # ---- what the metadata says ---------------------------------------------------------------------------------

    def adopt(self, streams: Iterable[Stream]) -> None:
        """Serve streams that are open now."""
        adopted: list[StreamId] = []
        for stream in streams:
            place = self._image.partition_of(stream.stream_id)
            topic = None if place is None else self._topics.by_id.get(place[0])
            if place is None or topic is None:
                self._storage.forget_stream(stream.stream_id, StreamClosed("the topic was deleted"))
                continue
            index = place[1]
            partition = Partition(
                storage=self._storage,
                stream=stream,
                topic_name=topic.name,
                topic_id=topic.topic_id,
                index=index,
                config=topic.config,
                producer_budget=self._producer_budget,
                traffic=topic.traffic,
            )
            self._by_stream[stream.stream_id] = partition
            topic.partitions[index] = partition
            if self._offline.pop(stream.stream_id, None) is not None:
                topic.offline.pop(index, None)
                log.info("a partition is no longer offline: %(partition)s", {"partition": partition})
            if partition.is_new:
                partition.start()
            else:
                self._to_load[stream.stream_id] = partition
                self._load_event.set()
            adopted.append(stream.stream_id)
        self._topics.changed()
        self._wake_waiting()
        for stream_id in adopted:
            self.on_arrived(stream_id)

    def want(self, topics: Iterable[Topic]) -> None:
        """The metadata changed something of these topics: open what is ours and is not open."""
        for topic in topics:
            for state in topic.info.partitions:
                stream_id = state.stream_id
                if state.leader != self._node_id or state.is_recovering or stream_id in self._by_stream:
                    continue
                if stream_id in self._opening:
                    self._changed_meanwhile.add(stream_id)
                else:
                    self._to_open[stream_id] = None
        if self._to_open:
            self._open_event.set()

    def get(self, stream_id: StreamId) -> Partition | None:
        """The partition of a stream that is open here and takes records."""
        partition = self._by_stream.get(stream_id)
        return partition if partition is not None and partition.loaded else None

    def gave(self, partitions: Iterable[Partition]) -> None:
        """These went to other nodes: they are not served here any more."""
        for partition in partitions:
            self._by_stream.pop(partition.stream.stream_id, None)
            topic = self._topics.by_id.get(partition.topic_id)
            if topic is not None and topic.partitions[partition.index] is partition:
                topic.partitions[partition.index] = None
        self._topics.changed()
        self._wake_waiting()

    def drop(self, topic: Topic) -> None:
        """A topic was deleted: close its partitions; whoever waits for them hears of it."""
        for state in topic.info.partitions:
            stream_id = state.stream_id
            self._to_open.pop(stream_id, None)
            self._to_load.pop(stream_id, None)
            self._by_stream.pop(stream_id, None)
            self._offline.pop(stream_id, None)
            self._storage.forget_stream(stream_id, StreamClosed(f"topic {topic.name} was deleted"))
        self._wake_waiting()

    def _wake_waiting(self) -> None:
        self._opened.set()
        self._opened = asyncio.Event()
        self.on_changed()

    def prefer(self, partition: Partition) -> None:
        """Somebody waits for this partition's state: load it next."""
        if self._to_load.pop(partition.stream.stream_id, None) is not None:
            self._to_load = {partition.stream.stream_id: partition, **self._to_load}

    async def wait_open(self, topic: Topic) -> None:
        """Return when the partitions of a topic that are ours are open, or the topic is gone."""
        while self._topics.by_id.get(topic.topic_id) is topic and any(
            state.leader == self._node_id and topic.partitions[state.index] is None and state.index not in topic.offline
            for state in topic.info.partitions
        ):
            await self._opened.wait()

    async def wait_state(self, partition: Partition) -> None:
        """Return when a partition's state is rebuilt, so that it takes appends. Raises StreamClosed."""
        while not partition.loaded:
            if partition.stream.closed is not None:
                raise partition.stream.closed
            self.prefer(partition)
            await self._loaded.wait()

    async def wait_loaded(self, timeout_s: float) -> None:
        """Return when every partition's state is rebuilt, or the time is up (the rest goes on in the background)."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._to_load or self._loading:
                    await self._loaded.wait()

    # ---- tasks --------------------------------------------------------------------------------------------------

    async def _open_wanted(self) -> None:
        while True:
            await self._open_event.wait()
            self._open_event.clear()
            wanted = list(self._to_open)
            self._opening.update(wanted)
            self._to_open.clear()
            try:
                opened = await self._storage.open_streams(wanted)
            except (MetadataUnavailable, ObjectStoreError) as error:
                log.warning(
                    "partitions cannot be opened yet: %(error)s (%(count)d of them)",
                    {"count": len(wanted), "error": error},
                )
                await asyncio.sleep(RETRY_DELAY_S)
                self._to_open.update(dict.fromkeys(wanted))
                self._open_event.set()
            else:
                self.adopt(opened.values())
                again = self._changed_meanwhile.intersection(wanted) - opened.keys()
                if again:  # the answer may be older than that change
                    self._to_open.update(dict.fromkeys(again))
                    self._open_event.set()
            finally:
                self._opening.difference_update(wanted)
                self._changed_meanwhile.clear()

    async def _load_wanted(self) -> None:
        while True:
            while not self._to_load:
                self._load_event.clear()
                await self._load_event.wait()
            stream_id = next(iter(self._to_load))
            partition = self._to_load.pop(stream_id)
            counted = partition.offline is None
            self._loading += counted
            try:
                await partition.load(self._now_ms())
                self.on_arrived(stream_id)
            except StreamClosed:
                continue
            except ObjectCorrupt as error:
                if partition.offline is None:
                    log.error(
                        "a partition is offline for producers: %(error)s (%(partition)s)",
                        {"partition": partition, "error": error},
                    )
                partition.offline = error
                self._retries[stream_id] = asyncio.get_running_loop().call_later(
                    OFFLINE_RETRY_DELAY_S, self._load_again, partition
                )
            except (StorageError, ObjectStoreError) as error:
                log.warning(
                    "state cannot be rebuilt yet: %(error)s (%(partition)s)", {"partition": partition, "error": error}
                )
                await asyncio.sleep(RETRY_DELAY_S)
                if partition.stream.closed is None:
                    self._to_load[stream_id] = partition
                    self._load_event.set()
            except (
                Exception
            ) as error:  # a state that cannot be read, or a mistake of ours: neither may take the loader along
                log.exception("a partition stays closed for producers: %(partition)s", {"partition": partition})
                partition.offline = error
            finally:
                self._loading -= counted
                self._loaded.set()
                self._loaded = asyncio.Event()

    def _load_again(self, partition: Partition) -> None:
        """A while after damage was in the way of its state."""
        stream_id = partition.stream.stream_id
        self._retries.pop(stream_id, None)
        if partition.stream.closed is None and self._by_stream.get(stream_id) is partition:
            self._to_load[stream_id] = partition
            self._load_event.set()

    async def _expire_producers(self) -> None:
        while True:
            await asyncio.sleep(min(EXPIRY_INTERVAL_S, self._producer_id_expiration_ms / 1000))
            before_ms = self._now_ms() - self._producer_id_expiration_ms
            for at, partition in enumerate(self):
                if partition.loaded:
                    partition.producers.expire(before_ms)
                if at % 1000 == 999:
                    await asyncio.sleep(0)
