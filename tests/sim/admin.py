"""Clients of the simulation that neither produce nor read: those that create and delete topics, and one that is a nuisance."""

from __future__ import annotations

import asyncio
import random

from protocol.apis import encode_request
from protocol.messages import create_topics, delete_topics, produce
from tests.sim.network import ConnectionReset
from tests.sim.producer import PRODUCE_VERSION
from tests.sim.world import BACK_OFF_S, RETRIABLE, Topic, World

__all__ = ["Hoarder", "create_topic", "delete_topic"]

_CREATE_TOPICS_VERSION = 7
_DELETE_TOPICS_VERSION = 6
_HOARDED = 12
_HOARDED_BYTES = 40_000
"""So many requests of this size are begun together: several times what a broker with little memory has for them."""
_UNKNOWN_TOPIC = 3
_TOPIC_EXISTS = 36


async def create_topic(world: World, topic: Topic) -> None:
    """Create a topic, until it is there."""
    client = world.client("admin")
    request = create_topics.CreateTopicsRequest(
        topics=[
            create_topics.CreatableTopic(
                name=topic.name,
                num_partitions=topic.partitions,
                replication_factor=1,
                configs=[]
                if topic.retention_ms is None
                else [create_topics.CreatableTopicConfig(name="retention.ms", value=str(topic.retention_ms))],
            )
        ],
        timeout_ms=30_000,
    )
    tried = False
    while True:
        try:
            answer = await client.call(create_topics.API, _CREATE_TOPICS_VERSION, request)
            code = answer.topics[0].error_code
            if code == 0 or (code == _TOPIC_EXISTS and tried):
                break
            if code == _TOPIC_EXISTS and client.broker.deposed:
                client.close()  # it means an earlier topic of this name
            elif code not in RETRIABLE:
                world.problems.append(f"creating {topic.name} failed: {code}, {answer.topics[0].error_message}")
                break
        except ConnectionReset:
            pass
        tried = True  # it may be there, and the answer was lost
        await asyncio.sleep(BACK_OFF_S)
    client.close()


async def delete_topic(world: World, topic: Topic) -> None:
    """Delete a topic, until it is gone."""
    topic.deleted = True
    client = world.client("admin")
    request = delete_topics.DeleteTopicsRequest(
        topics=[delete_topics.DeleteTopicState(name=topic.name)], timeout_ms=30_000
    )
    tried = False
    while True:
        try:
            answer = await client.call(delete_topics.API, _DELETE_TOPICS_VERSION, request)
            code = answer.responses[0].error_code
            if code == 0 or (code == _UNKNOWN_TOPIC and tried and not client.broker.deposed):
                break
            if code not in RETRIABLE:
                world.problems.append(f"deleting {topic.name} failed: {code}")
                break
        except ConnectionReset:
            pass
        tried = True
        await asyncio.sleep(BACK_OFF_S)
    client.close()


class Hoarder:
    """Begins large requests on many connections, and does not go on with them: the broker holds what came until it hangs up (I13)."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng

    async def run(self) -> None:
        """Again and again, until the world is finishing."""
        while not self._world.finishing:
            await asyncio.sleep(self._rng.expovariate(0.5) * self._world.lull)
            await asyncio.gather(*(self._begin_a_request(index) for index in range(_HOARDED)))

    async def _begin_a_request(self, index: int) -> None:
        request = produce.ProduceRequest(
            acks=-1,
            timeout_ms=30_000,
            topic_data=[
                produce.TopicProduceData(
                    name="hoarded",
                    partition_data=[produce.PartitionProduceData(index=0, records=bytes(_HOARDED_BYTES))],
                )
            ],
        )
        client = self._world.client(f"hoarder-{index}")
        frame = b"".join(encode_request(produce.API.key, PRODUCE_VERSION, 1, client.name, request))
        try:
            (await client.connect()).send(frame[: -self._rng.randint(1, _HOARDED_BYTES // 4)])
            await asyncio.sleep(self._rng.uniform(0.5, 2.0))
        except ConnectionReset:
            return
        finally:
            client.close()
