"""Running brokers as a tool reaches them: the metadata from the bucket, commands to whoever leads.

Always true:
- Nothing is written to the bucket from here, and the office is taken from nobody: a cluster that does not run is told as that.
- A command that is given again is one that may be (`Command.REPEATABLE`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from broker.inspect.bucket import Bucket, open_bucket
from controller.commands import Command
from controller.errors import ControllerError, WrongCluster
from controller.image import Image
from controller.peers import Balance, NotLeader, Peers, PeerUnavailable
from controller.replica import Replica
from controller.tcp import TcpPeers

__all__ = ["ClusterClient", "LeaderUnreachable", "open_cluster"]

T = TypeVar("T")
R = TypeVar("R")

PATIENCE_S: Final = 10.0
"""With a leader that is being replaced, which takes two or three seconds."""

RETRY_DELAY_S: Final = 0.2


class LeaderUnreachable(ControllerError):
    """No broker leads, or it cannot be reached from here; the message says which."""


class ClusterClient:
    """A tool's view of a cluster that runs. Made by `open_cluster`."""

    def __init__(self, bucket: Bucket, replica: Replica, peers: Peers) -> None:
        self._bucket = bucket
        self._replica = replica
        self._peers = peers

    @property
    def image(self) -> Image:
        """The metadata as of the last `refresh`."""
        return self._replica.image

    async def refresh(self) -> None:
        """Read the metadata log to its end."""
        await self._replica.catch_up()

    async def balance(self) -> Balance:
        """How partitions lie, as the leader sees it. Raises LeaderUnreachable."""
        return await self._asked(self._peers.balance)

    async def submit(self, command: Command[R]) -> R:
        """Have the leader decide on a command. Raises LeaderUnreachable, and the errors that the command names."""
        assert command.REPEATABLE, "its answer may be lost"

        async def ask(address: str) -> Any:
            return (await self._peers.submit(address, command)).result

        result = await self._asked(ask)
        if isinstance(result, Exception):
            raise result
        answer: R = result
        return answer

    async def _asked(self, ask: Callable[[str], Awaitable[T]]) -> T:
        reason = "it does not answer"
        address = ""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    leader = await self._bucket.log.read_leader()
                    address = "" if leader is None else leader.leader
                    if address:
                        try:
                            return await ask(address)
                        except (NotLeader, PeerUnavailable) as error:
                            reason = str(error)
                    await asyncio.sleep(RETRY_DELAY_S)
        except TimeoutError:
            pass
        if not address:
            raise LeaderUnreachable(
                "no broker leads in this bucket: start brokers that know each other (controller.listeners)"
            )
        raise LeaderUnreachable(
            f"the leader at {address} cannot be reached: {reason}. Run this where brokers reach each other, and while they run"
        )


@asynccontextmanager
async def open_cluster(uri: str, *, cluster_id: str, rng: random.Random) -> AsyncIterator[ClusterClient]:
    """Read the metadata of the cluster in a bucket, and close everything at the end of the block.

    Raises:
        InvalidSettings, ObjectStoreError, MetadataCorrupt, UnsupportedMetadata: they cannot be had.
        WrongCluster: the bucket is another cluster's than the settings say.
    """
    async with open_bucket(uri, rng) as bucket:
        replica = await bucket.replica()
        found_id = replica.image.cluster_id
        if cluster_id and found_id != cluster_id:
            raise WrongCluster(f"the bucket belongs to cluster {found_id!r}, and cluster.id is {cluster_id!r}")
        peers = TcpPeers(cluster_id=found_id, node_id=-1)
        try:
            yield ClusterClient(bucket, replica, peers)
        finally:
            await peers.close()
