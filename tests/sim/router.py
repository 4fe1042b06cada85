"""A client of several brokers: it asks any of them who leads a partition, and goes there, as real clients do.

It believes what it was told until a broker refuses, or does not answer. A refusal may name the new leader (KIP-951): it goes there at once,
perhaps sooner than that broker has opened the partition.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from protocol.messages import metadata
from tests.sim.client import Client, Endpoint
from tests.sim.network import ClientConnection, ConnectionReset, Network

__all__ = ["RoutedClient"]

_METADATA_VERSION = 9
_NOT_LED_HERE = frozenset({3, 5, 6, 56, 74, 75})
"""UNKNOWN_TOPIC_OR_PARTITION, LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER, KAFKA_STORAGE_ERROR, leader epochs that are not the same."""
_LOOK_UP_S = 5.0
"""Another broker is asked where one does not answer for so long."""
_BACK_OFF_S = 0.1


class RoutedClient(Client):
    """One connection at a time, to the broker that leads a partition; or, where none is named, to any."""

    def __init__(
        self,
        network: Network,
        ports: Sequence[int],
        name: str,
        rng: random.Random,
        slowness: float = 1.0,
        *,
        of: tuple[str, int] | None = None,
    ) -> None:
        super().__init__(network, ports[0], name, slowness)
        self._ports = ports
        self._rng = rng
        self._of = of
        self._leader_port: int | None = None

    async def connect(self) -> ClientConnection:
        """See Client. Raises ConnectionReset, also where nobody leads."""
        if self._connection is None or self._connection.closed:
            if self._of is None:
                self._port = self._rng.choice(self._ports)
            else:
                port, self._leader_port = (
                    self._leader_port,
                    None,
                )  # believed once: whoever loses a connection looks again
                self._port = await self._look_up(*self._of) if port is None else port
        return await super().connect()

    def misled(self, code: int, endpoints: Sequence[Endpoint] = ()) -> None:
        """See Client. What is under way here is given up: nobody knows what becomes of it."""
        if code in _NOT_LED_HERE:
            self.close()
            self._leader_port = next((endpoint.port for endpoint in endpoints), None)

    async def _look_up(self, topic: str, partition: int) -> int:
        """The port of the leader, as any broker knows it."""
        asked = Client(self._network, self._rng.choice(self._ports), f"{self.name}-metadata")
        try:
            async with asyncio.timeout(_LOOK_UP_S):
                answer: metadata.MetadataResponse = await asked.call(
                    metadata.API,
                    _METADATA_VERSION,
                    metadata.MetadataRequest(
                        topics=[metadata.MetadataRequestTopic(name=topic)], allow_auto_topic_creation=False
                    ),
                )
        except TimeoutError as error:
            raise ConnectionReset("no broker told who leads") from error
        finally:
            asked.close()
        ports = {broker.node_id: broker.port for broker in answer.brokers}
        for state in answer.topics[0].partitions:
            if state.partition_index == partition and state.leader_id in ports:
                return ports[state.leader_id]
        await asyncio.sleep(_BACK_OFF_S)
        raise ConnectionReset(f"nobody leads {topic}-{partition}")
