"""Looks at the bucket beside the event loop: what they prove, when they are had, and that none counts which was had before a suspicion."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.config import ControllerSettings
from controller.entry import Entry, EntryHeader
from controller.image import Image
from controller.lease import Known, Lease
from controller.lookout import Found, Lookout, Looks, concerns
from controller.nodes import LeaveCluster, UnregisterNode
from controller.pulse import HUNG_AFTER_S
from controller.records import (
    LeaderChanged,
    MetadataRestored,
    NodeDead,
    NodeDrained,
    NodeRegistered,
    NodeSuspected,
    NodeTrusted,
    NodeUnregistered,
    Record,
    StreamsAbandoned,
)
from controller.state import State
from controller.tables import NodeStatus
from s3stream.objectstore import Unavailable
from tests.controller.machine import T0_MS, Machine

LIMIT_S = 30.0
LEASE_S = 3.0
TRUSTED_S = 300.0
NOW_S = 1_000.0


@dataclass
class Registered:
    """Node 1, as it registered."""

    node_id: int = 1
    node_epoch: int = 5


KNOWN = Known(trust=0, next_index=10, tail_known_s=NOW_S - 2, as_of_s=NOW_S - 2, moved_s=NOW_S - 2)
"""Two seconds ago the event loop renewed the lease, and moved for the last time."""


def of_another() -> Record:
    return NodeSuspected(node_id=2, node_epoch=4, at_ms=T0_MS)


def entry(*records: Record) -> Entry:
    return Entry(header=EntryHeader(index=0, controller_epoch=1, nonce=bytes(16)), records=records, size_bytes=100)


@dataclass
class Bucket:
    """The log from entry 10 on; each request takes a tenth of a second."""

    entries: list[Entry] = field(default_factory=list)
    now_s: float = NOW_S
    asked: list[int] = field(default_factory=list)

    def clock(self) -> float:
        return self.now_s

    def look(self, looks: Looks, known: Known = KNOWN) -> float | None:
        reading = looks.look(known, self.clock)
        try:
            index = next(reading)
            while True:
                self.asked.append(index)
                self.now_s += 0.1
                found = self.entries[index - 10] if index - 10 < len(self.entries) else None
                index = reading.send(found)
        except StopIteration as ended:
            as_of_s: float | None = ended.value
            return as_of_s


@pytest.fixture
def looks() -> Looks:
    return Looks(Registered(), lease_s=LEASE_S, trusted_s=TRUSTED_S)


# ---- what a look proves


def test_a_log_that_goes_no_further_extends_the_lease_as_of_before_the_request(looks: Looks) -> None:
    bucket = Bucket()
    assert bucket.look(looks) == NOW_S
    assert bucket.asked == [10]


def test_entries_that_concern_others_are_passed_and_the_last_request_counts(looks: Looks) -> None:
    bucket = Bucket([entry(of_another()), entry(LeaderChanged(controller_epoch=2, leader="other:9093"))])
    assert bucket.look(looks) == pytest.approx(NOW_S + 0.2)
    assert bucket.asked == [10, 11, 12]
    assert bucket.look(looks) == pytest.approx(NOW_S + 0.3)
    assert bucket.asked[3:] == [12], "the next look begins at the end"
    bucket.entries += [entry(of_another())] * 8
    bucket.look(looks, replace(KNOWN, next_index=20))
    assert bucket.asked[4:] == [20], "or where the event loop has come to"


CONCERNS: tuple[Record, ...] = (
    NodeSuspected(node_id=1, node_epoch=5, at_ms=T0_MS),
    NodeTrusted(node_id=1, node_epoch=5),
    NodeDead(node_id=1, node_epoch=5, at_ms=T0_MS),
    NodeUnregistered(node_id=1),
    NodeRegistered(node_id=1, node_epoch=6, wal_id="w", wal_epoch=1, address="", rack="", registered_at_ms=T0_MS),
    StreamsAbandoned(wal_id="w", resume_offsets=(), abandoned_at_ms=T0_MS),
    MetadataRestored(
        index=3, restored_at_ms=T0_MS, deleted_topic_ids=(), topics=(), streams=(), objects=(), broker_configs=None
    ),
)


@pytest.mark.parametrize("record", CONCERNS, ids=lambda record: type(record).__name__)
def test_an_entry_that_may_end_the_trust_ends_the_look_and_the_event_loop_has_to_see_it(
    looks: Looks, record: Record
) -> None:
    bucket = Bucket([entry(of_another()), entry(of_another(), record), entry(of_another())])
    assert bucket.look(looks) is None
    assert bucket.asked == [10, 11]
    assert looks.due_in_s(replace(KNOWN, next_index=11), bucket.now_s) == math.inf
    assert looks.due_in_s(replace(KNOWN, next_index=12), bucket.now_s) == 0, "it was applied, and the node is trusted"


def test_what_a_node_tells_of_itself_and_what_concerns_others_is_no_concern() -> None:
    itself = NodeRegistered(node_id=1, node_epoch=5, wal_id="w", wal_epoch=2, address="", rack="", registered_at_ms=0)
    another = NodeRegistered(node_id=2, node_epoch=6, wal_id="v", wal_epoch=1, address="", rack="", registered_at_ms=0)
    dead = NodeDead(node_id=2, node_epoch=4, at_ms=T0_MS)
    assert not concerns([itself, another, dead, NodeDrained(node_id=1, is_drained=True)], Registered())


def test_a_404_proves_nothing_where_the_end_was_known_too_long_ago(looks: Looks) -> None:
    bucket = Bucket()
    old = replace(KNOWN, tail_known_s=NOW_S - TRUSTED_S - 1)
    assert bucket.look(looks, old) is None
    assert bucket.asked == [], "the entry could have been deleted"
    assert looks.due_in_s(old, NOW_S) == math.inf
    assert bucket.look(looks) == NOW_S
    bucket.now_s += TRUSTED_S - 1
    assert bucket.look(looks, old) == pytest.approx(NOW_S + TRUSTED_S - 0.9), "since the last look it is known"


class Steps:
    """A cluster of two nodes, of which anything may become."""

    NAMES = ("register 1", "register 2", "suspect 1", "suspect 2", "trust 1", "dead 1", "leave 1", "unregister 1")

    def __init__(self) -> None:
        self.machine = Machine()
        self.node_epoch = self.machine.register(1, "wal-1")
        self.machine.register(2, "wal-2")

    def take(self, name: str) -> None:
        what, _, number = name.partition(" ")
        node_id = int(number)
        if node_id not in self.machine.state.tables.nodes and what != "register":
            return
        match what:
            case "register":
                self.machine.register(node_id, f"wal-{node_id}")
            case "suspect":
                self.machine.suspect(node_id)
            case "trust":
                self.machine.trust(node_id)
            case "dead":
                self.machine.declare_dead(node_id)
            case "leave":
                if self.machine.state.tables.node_status(node_id) is not NodeStatus.DEAD:
                    epoch = self.machine.node_epoch(node_id)
                    self.machine.do(LeaveCluster(node_id=node_id, node_epoch=epoch, at_ms=T0_MS))
            case "unregister":
                if self.machine.state.tables.node_status(node_id) is NodeStatus.DEAD:
                    self.machine.do(UnregisterNode(node_id=node_id))


@given(st.lists(st.sampled_from(Steps.NAMES), max_size=12))
def test_whatever_ends_the_trust_in_a_node_concerns_it(names: list[str]) -> None:
    steps = Steps()
    for name in names:
        steps.take(name)
    registration = Registered(node_epoch=steps.node_epoch)

    def is_trusted(state: State) -> bool:
        node = Image(state).node(1)
        return node is not None and node.node_epoch == steps.node_epoch and node.status is NodeStatus.ALIVE

    state = State()
    for record in steps.machine.log:
        was_trusted = is_trusted(state)
        state.apply(record)
        if is_trusted(state) is not was_trusted and was_trusted:
            assert concerns([record], registration), record


# ---- when it is had


def test_nobody_looks_while_the_event_loop_is_in_time(looks: Looks) -> None:
    in_time = replace(KNOWN, as_of_s=NOW_S - 1.0)
    assert looks.due_in_s(in_time, NOW_S) == pytest.approx(0.5)
    assert looks.due_in_s(KNOWN, NOW_S) == 0
    Bucket().look(looks)
    assert looks.due_in_s(KNOWN, NOW_S + 0.1) == pytest.approx(1.4), "a look of one's own counts as well"
    assert looks.due_in_s(replace(KNOWN, trust=1), NOW_S + 0.1) == 0, "but none from before trust was lost"


def test_nobody_looks_for_a_node_that_hangs_or_has_no_lease(looks: Looks) -> None:
    assert looks.due_in_s(KNOWN, KNOWN.moved_s + HUNG_AFTER_S) == 0
    assert looks.due_in_s(KNOWN, KNOWN.moved_s + HUNG_AFTER_S + 0.1) == math.inf
    assert looks.due_in_s(None, NOW_S) == math.inf


# ---- what becomes of the lease


class Log:
    """The controller of node 1, whose event loop has read all there is, as its lease sees it."""

    is_leader = False
    office_seen_s = float("-inf")

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.answers = True

    @property
    def image(self) -> Image:
        return Image(self.machine.state)

    @property
    def next_index(self) -> int:
        return len(self.machine.log)

    async def is_in_office(self) -> bool:
        return False

    async def read_entry(self, index: int) -> Entry | None:
        if not self.answers:
            await asyncio.get_running_loop().create_future()
        return None

    async def receive(self, entries: object) -> None:
        raise AssertionError("there are none")

    async def refresh(self) -> None:
        return


class Held:
    """A lease that is held, on a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = NOW_S
        self.machine = Machine()
        self.log = Log(self.machine)
        node_epoch = self.machine.register(1, "wal-1")

        async def nothing() -> None:
            return

        self.lease = Lease(
            self.log,
            Registered(node_epoch=node_epoch),
            settings=ControllerSettings(lease_ms=3_000),
            complete_registration=nothing,
            clock=lambda: self.now_s,
        )

    async def renew(self) -> None:
        running = asyncio.create_task(self.lease.run())
        await self.lease.wait_held(LIMIT_S)
        while not self.lease.serves:
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def known(self) -> Known:
        self.lease.beat()
        known = self.lease.known
        assert known is not None
        return known


async def test_whoever_looks_knows_of_a_lease_from_the_moment_at_which_it_is_held() -> None:
    """The event loop may be blocked before it comes to say so by itself."""
    held = Held()
    await held.renew()
    known = held.lease.known
    assert known is not None
    assert known.as_of_s == known.moved_s == NOW_S


async def test_a_look_holds_the_lease_for_as_long_as_a_read_of_the_event_loop_would() -> None:
    held = Held()
    await held.renew()
    known = held.known()
    held.now_s += 2.0
    held.lease.extend(known, held.now_s - 0.1)
    held.now_s += 2.8
    assert held.lease.serves
    assert held.lease.remaining_s == pytest.approx(0.1)
    held.now_s += 0.2
    assert not held.lease.serves, "an as-of moment is all that there is: nobody need know that the process stood still"
    assert held.lease.lapses == 0, "it says so when it renews it"


async def test_no_look_from_before_a_suspicion_counts_whenever_it_comes() -> None:
    """The race of thread and event loop, in each order: a look began, the event loop heard of a suspicion, the look is told."""
    held = Held()
    await held.renew()
    began = held.known()
    held.lease.extend(began, NOW_S)
    held.machine.suspect(1)
    held.lease.metadata_changed()
    assert not held.lease.serves, "nor one that was told before"
    assert held.lease.known is None
    held.lease.extend(began, held.now_s)
    assert not held.lease.serves
    held.lease.beat()
    assert held.lease.known is None, "nobody is to look for a node that is suspected"
    held.machine.trust(1)
    held.lease.metadata_changed()
    held.lease.beat()
    assert not held.lease.serves, "trusted again, it has to look first"
    await held.renew()
    assert held.known().trust > began.trust
    held.now_s += 2.0
    held.lease.extend(began, held.now_s)
    held.now_s += 1.5
    assert not held.lease.serves


async def test_a_lease_that_ran_out_before_the_look_came_is_a_lapse_that_is_told() -> None:
    held = Held()
    await held.renew()
    known = held.known()
    held.now_s += 3.5
    assert not held.lease.serves
    held.lease.extend(known, held.now_s)
    assert held.lease.serves
    await held.renew()
    running = asyncio.create_task(held.lease.run())
    await asyncio.sleep(0)
    assert held.lease.lapses == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# ---- the thread


class Reader:
    """Reads a log that ends at once, in the thread that made it."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.indexes: list[int] = []
        self.failures = 0
        self.closed = False

    async def read_entry(self, index: int) -> Entry | None:
        assert threading.get_ident() == self.thread
        self.indexes.append(index)
        if self.failures:
            self.failures -= 1
            raise Unavailable("away")
        return None

    async def close(self) -> None:
        assert threading.get_ident() == self.thread
        self.closed = True


def until(condition: Callable[[], bool]) -> None:
    """Blocks the event loop until then."""
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.fixture
def reader() -> Iterator[Reader]:
    """Made by the thread, and closed in the end."""
    made = Reader()
    yield made
    assert made.closed


async def test_while_the_event_loop_is_blocked_the_thread_looks_and_tries_again(reader: Reader) -> None:
    held = Held()
    await held.renew()

    def opened() -> Reader:
        reader.thread = threading.get_ident()
        return reader

    lookout = Lookout(
        held.lease,
        Registered(node_epoch=held.machine.node_epoch(1)),
        lease_ms=300,  # it is the pace of the thread
        entry_min_age_ms=600_000,
        open_reader=opened,
        clock=lambda: held.now_s,
    )
    watching = asyncio.create_task(lookout.run())
    for _ in range(10):
        await asyncio.sleep(0.05)
        assert reader.indexes == [], "the lease was renewed just now"
    reader.failures = 2
    held.now_s += 2.9
    until(lambda: lookout.found[Found.TAIL] == 1)
    assert lookout.found[Found.FAILURE] == 2
    assert reader.indexes == [held.log.next_index] * 3
    held.now_s += 2.9
    assert held.lease.serves
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
