"""Has a node id given to a broker that has none: asks whoever leads, or takes the office where nobody does, and decides by itself.

Theory of operation. Who asks is no node yet: it neither follows the metadata log nor shows life. It reads in the bucket who leads, and asks that one. A
leader that answers nothing for the election timeout is replaced, as a follower would do it, by compare-and-swap; so of many brokers
that start at once on a new bucket, or after all others died, one takes the office, and the others ask it.

Always true:
- An id is given by an entry of the metadata log, and by nothing else (`controller.allotment`).
- An office is taken from nobody who answers that it leads.
- An answer that is lost costs an id that nobody has for some seconds.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final, Protocol

from controller.allotment import AllotNode
from controller.commands import Command
from controller.config import ControllerSettings
from controller.log import LeaderObject
from controller.nodes import NodeRegistration
from controller.peers import Balance, NotLeader, PeerUnavailable
from controller.wire import Outcome
from s3stream.errors import MetadataUnavailable

__all__ = ["Asked", "Office", "allot"]

log: Final = logging.getLogger("tidelog.node")


class Office(Protocol):
    """The controller of this broker, as far as it is needed here."""

    @property
    def address(self) -> str:
        """`host:port` by which others reach it."""

    @property
    def settings(self) -> ControllerSettings:
        """How long anything may take."""

    @property
    def is_leader(self) -> bool:
        """Whether it holds the office, as far as it knows."""

    async def read_leader(self) -> LeaderObject | None:
        """Who took office last, by the bucket."""

    async def run_for_office(self, instead_of: LeaderObject | None) -> None:
        """Become the leader, unless another one was faster. Raises MetadataUnavailable."""

    async def decide(self, command: AllotNode) -> NodeRegistration:
        """Have it decided here. Raises NotLeader, and what the command does."""


class Asked(Protocol):
    """Brokers that may lead, by their addresses."""

    async def submit(self, address: str, command: Command[NodeRegistration]) -> Outcome:
        """Have a command decided there. Raises NotLeader, PeerUnavailable."""

    async def balance(self, address: str) -> Balance:
        """Answered by whoever leads. Raises NotLeader, PeerUnavailable."""


async def allot(office: Office, peers: Asked, command: AllotNode, rng: random.Random) -> NodeRegistration:
    """The id that this broker has from now on, and the epoch under which it got it.

    Raises:
        NodeRefused: no id can be given now.
        MetadataUnavailable: nobody gave one within the time of a start; says what stood in the way.
    """
    settings = office.settings
    loop = asyncio.get_running_loop()
    patience_s = settings.election_timeout_ms / 1_000
    silent: tuple[LeaderObject | None, float] = (None, loop.time())
    reason = "nobody leads"
    try:
        async with asyncio.timeout(settings.start_timeout_ms / 1_000):
            while True:
                leader = await office.read_leader()
                if leader != silent[0]:
                    silent = (leader, loop.time())
                try:
                    if office.is_leader:
                        return await office.decide(command)
                    if leader is None or leader.leader in ("", office.address):
                        # Nobody holds the office, or this broker did before it was started anew.
                        await office.run_for_office(leader)
                        continue
                    return await _given_by(peers, leader.leader, command, patience_s)
                except (NotLeader, PeerUnavailable) as error:
                    reason = str(error)
                if loop.time() - silent[1] >= patience_s and not await _leads(peers, leader):
                    log.warning(
                        "the leader does not answer, this broker takes over to be given a node id: %(reason)s",
                        {"leader": "" if leader is None else leader.leader, "reason": reason},
                    )
                    await office.run_for_office(leader)
                    continue
                await asyncio.sleep(rng.uniform(0.5, 1.5) * settings.retry_backoff_ms / 1_000)
    except TimeoutError as error:
        raise MetadataUnavailable(
            f"no node id was given to this broker within {settings.start_timeout_ms} ms: {reason}"
        ) from error


async def _given_by(peers: Asked, address: str, command: AllotNode, patience_s: float) -> NodeRegistration:
    """Raises NotLeader, PeerUnavailable, and what the command does."""
    try:
        async with asyncio.timeout(patience_s):
            outcome = await peers.submit(address, command)
    except TimeoutError as error:
        raise PeerUnavailable(f"{address}: no answer within {patience_s} s", sent=True) from error
    if isinstance(outcome.result, Exception):
        raise outcome.result
    registration: NodeRegistration = outcome.result
    return registration


async def _leads(peers: Asked, leader: LeaderObject | None) -> bool:
    """Whether somebody answers who leads, though it gives no ids: it is of an older version, or waits for the bucket."""
    if leader is None:
        return False
    try:
        await peers.balance(leader.leader)
    except (NotLeader, PeerUnavailable):
        return False
    return True
