"""Topics as this broker serves them: the metadata image, joined with the partitions that are open here.

Always true:
- A topic is here exactly while the applied metadata has it. Its id tells apart topics that had the same name.
- `partitions[i]` is set while partition i is open on this node and answers for it; None otherwise. `offline` has those that cannot be opened
  since acknowledged records of theirs may be missing; they are answered KAFKA_STORAGE_ERROR, which clients try again.
- `version` grows with every change that a Metadata response could show.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from broker.config import BrokerSettings
from broker.errors import KafkaError
from broker.metrics import Metrics, TopicTraffic
from broker.partition import Partition
from broker.topic_config import TopicConfig, colliding_form, resolve
from controller.image import Image, PartitionState
from controller.image import Topic as TopicInfo
from controller.lease import ALWAYS, Serving
from protocol.errors import ErrorCode

__all__ = ["INTERNAL_TOPICS", "Topic", "Topics"]

INTERNAL_TOPICS = frozenset({"__consumer_offsets", "__transaction_state"})
"""Topics that the broker itself writes; clients may read them."""


class Topic:
    """One topic."""

    __slots__ = ("config", "info", "is_internal", "name", "offline", "partitions", "topic_id", "traffic")

    def __init__(self, info: TopicInfo, config: TopicConfig, traffic: TopicTraffic) -> None:
        self.name = info.name
        self.topic_id = info.topic_id
        self.is_internal = info.name in INTERNAL_TOPICS
        self.info = info
        """As the metadata has it: leaders, epochs, configs."""
        self.config = config
        self.traffic = traffic
        """Where handlers count what goes in and out."""
        self.partitions: list[Partition | None] = [None] * len(info.partitions)
        self.offline: dict[int, str] = {}
        """Why, by partition index."""

    def not_open(self, index: int) -> KafkaError:
        """Why a partition that exists is not answered for here."""
        why = self.offline.get(index)
        if why is not None:
            return KafkaError(ErrorCode.KAFKA_STORAGE_ERROR, f"{self.name}-{index} is offline: {why}")
        return KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, f"{self.name}-{index} is not open on this broker")

    def no_lease(self, index: int) -> KafkaError:
        """Why a partition that is open here is not answered for: it may be open elsewhere by now."""
        return KafkaError(
            ErrorCode.NOT_LEADER_OR_FOLLOWER, f"this broker has no lease, and cannot answer for {self.name}-{index}"
        )

    def leader(self, index: int) -> PartitionState | None:
        """Who has partition `index` open; None while nobody has."""
        state = self.info.partitions[index]
        return state if state.is_open else None

    def next_leader(self, index: int) -> tuple[int, int]:
        """Where a client should go instead of here, and the leader epoch there, which may be one that is about to begin (KIP-951)."""
        state = self.info.partitions[index]
        partition = self.partitions[index]
        if partition is not None and partition.leaving and state.target != -1:
            return state.target, state.leader_epoch + 1
        return state.leader, state.leader_epoch + (not state.is_open)


class Topics:
    """All topics of the cluster."""

    def __init__(self, image: Image, settings: BrokerSettings, metrics: Metrics, serving: Serving = ALWAYS) -> None:
        self._image = image
        self._serving = serving
        self._settings = settings
        self._metrics = metrics
        self.by_name: dict[str, Topic] = {}
        self.by_id: dict[bytes, Topic] = {}
        self.version = 0
        self._names_by_form: dict[str, str] = {}
        self._change = asyncio.Event()

    def sync(self, topic_ids: Iterable[bytes]) -> list[Topic]:
        """Take over what the metadata says of these topics now; returns those that are gone."""
        removed: list[Topic] = []
        for topic_id in topic_ids:
            self.version += 1
            info = self._image.topic_by_id(topic_id)
            topic = self.by_id.get(topic_id)
            if info is None:
                if topic is not None:
                    self._remove(topic)
                    removed.append(topic)
            elif topic is None:
                topic = Topic(info, resolve(info.configs, self._settings), self._metrics.topic(info.name))
                self.by_id[topic_id] = self.by_name[info.name] = topic
                self._names_by_form[colliding_form(info.name)] = info.name
            else:
                self._update(topic, info)
        return removed

    def sync_all(self) -> list[Topic]:
        """Take over everything; returns the topics that are gone."""
        return self.sync({topic.topic_id for topic in self._image.topics()} | self.by_id.keys())

    def use(self, settings: BrokerSettings) -> None:
        """The broker's settings are others now: so may be what topics go by that do not say."""
        former, self._settings = self._settings, settings
        if resolve({}, former) == resolve({}, settings):
            return
        for topic in self.by_id.values():
            _configure(topic, resolve(topic.info.configs, settings))

    def open_partition(self, name: str, index: int, current_leader_epoch: int = -1) -> Partition:
        """The partition that a client names, open on this node.

        Raises:
            KafkaError, StreamClosed: there is none; or this node does not answer for it, or not under that leader epoch.
        """
        topic = self.by_name.get(name)
        if topic is None or not 0 <= index < len(topic.partitions):
            raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"{name}-{index} does not exist")
        partition = topic.partitions[index]
        if partition is None:
            raise topic.not_open(index)
        if not self._serving.serves:
            raise topic.no_lease(index)
        if partition.stream.withheld is not None:
            raise partition.stream.withheld
        code = partition.check_epoch(current_leader_epoch)
        if code:
            raise KafkaError(code, "the client's leader epoch is not the current one")
        return partition

    def changed(self) -> None:
        """Something else that Metadata shows changed: a node, or a partition that opened."""
        self.version += 1
        self._change.set()
        self._change = asyncio.Event()

    async def wait_open_elsewhere(self, names: Iterable[str], timeout_s: float) -> None:
        """Return when every partition of these topics is open on some node, or the time is up: its node may be away."""
        wanted = set(names)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    wanted = {name for name in wanted if self._waits_to_open(name)}
                    if not wanted:
                        return
                    await self._change.wait()

    def _waits_to_open(self, name: str) -> bool:
        topic = self.by_name.get(name)
        return topic is not None and not all(state.is_open for state in topic.info.partitions)

    def colliding_name(self, name: str) -> str | None:
        """An existing topic whose name differs only in '.' and '_'; see `colliding_form`."""
        other = self._names_by_form.get(colliding_form(name))
        return None if other == name else other

    def _remove(self, topic: Topic) -> None:
        del self.by_id[topic.topic_id]
        if self.by_name.get(topic.name) is topic:  # not the one that took its name since
            del self.by_name[topic.name]
            self._metrics.forget_topic(topic.name)
            self._names_by_form.pop(colliding_form(topic.name), None)

    def _update(self, topic: Topic, info: TopicInfo) -> None:
        if info.configs != topic.info.configs:
            _configure(topic, resolve(info.configs, self._settings))
        topic.info = info
        topic.partitions.extend([None] * (len(info.partitions) - len(topic.partitions)))


def _configure(topic: Topic, config: TopicConfig) -> None:
    """Have a topic and its open partitions go by another configuration, from their next request on."""
    topic.config = config
    for partition in topic.partitions:
        if partition is not None:
            partition.config = config
