"""Consumer groups: every client joins, shares, leaves, commits and goes on where it was, with every assignor that it has."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.interop.clients.base import DEADLINE_S, Client, Member, Progress, Record
from tests.interop.clients.confluent import Confluent
from tests.interop.conftest import CLIENTS, installed, installed_clients

pytestmark = pytest.mark.interop

PARTITIONS = 4


class Reader:
    """A member with everything that it has read so far."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._left = False
        self.assigned: frozenset[int] = frozenset()
        self.read: list[tuple[int, Record]] = []

    def poll(self) -> None:
        found: Progress = self._member.progress()
        self.assigned = found.assigned
        self.read += found.records

    def leave(self) -> None:
        if not self._left:
            self._left = True
            self._member.leave()
            self.poll()

    @property
    def values(self) -> list[bytes | None]:
        return [record.value for _, record in self.read]


def wait_until(condition: Callable[[], bool], *readers: Reader, what: str) -> None:
    """Poll the readers until something is so; fail, and say what they have, when it does not become so."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        for reader in readers:
            reader.poll()
        if condition():
            return
        if time.monotonic() > deadline:
            state = [(sorted(reader.assigned), len(reader.read)) for reader in readers]
            raise AssertionError(f"not within {DEADLINE_S} s: {what}; the members have (partitions, records) {state}")
        time.sleep(0.05)


class Group:
    """One group of one test: its members leave at the end, whatever happens."""

    def __init__(self, topic: str, stack: ExitStack) -> None:
        self.name = f"group-{uuid.uuid4().hex[:8]}"
        self._topic = topic
        self._stack = stack

    def join(self, client: Client, assignor: str, *, instance_id: str = "", limit: int = 0) -> Reader:
        member = client.join(self._topic, self.name, assignor=assignor, instance_id=instance_id, limit=limit)
        reader = Reader(member)
        self._stack.callback(reader.leave)
        return reader


@contextmanager
def group_of(topic: str) -> Iterator[Group]:
    with ExitStack() as stack:
        yield Group(topic, stack)


def fill(producer: Confluent, topic: str, label: str, count: int = 10) -> set[bytes]:
    """So many records in each partition, every value used once."""
    sent = set()
    for partition in range(PARTITIONS):
        values = [f"{label}-{partition}-{number}".encode() for number in range(count)]
        producer.produce(topic, [Record(key=b"k", value=value) for value in values], partition=partition)
        sent |= set(values)
    return sent


def in_order(reader: Reader) -> bool:
    """Whether offsets only grow in each partition, going back only to read again what was not committed."""
    firsts: dict[tuple[int, int | None], int] = {}
    for position, (partition, record) in enumerate(reader.read):
        firsts.setdefault((partition, record.offset), position)
    for partition in range(PARTITIONS):
        offsets = [
            offset for (found, offset), _ in sorted(firsts.items(), key=lambda item: item[1]) if found == partition
        ]
        if offsets != sorted(offsets, key=lambda offset: offset if offset is not None else -1):
            return False
    return True


PAIRS = [(name, assignor) for name, make in CLIENTS.items() for assignor in make("").assignors]


@pytest.mark.parametrize(("name", "assignor"), PAIRS)
def test_two_members_share_and_nothing_is_lost_when_one_leaves(
    bootstrap: str, confluent: Confluent, topic: str, name: str, assignor: str
) -> None:
    client = installed(CLIENTS[name](bootstrap))
    confluent.create_topic(topic, PARTITIONS)
    everything = set(range(PARTITIONS))
    with group_of(topic) as group:
        sent = fill(confluent, topic, "alone")
        first = group.join(client, assignor)
        wait_until(lambda: first.assigned == everything and set(first.values) == sent, first, what="one reads all")

        second = group.join(client, assignor)
        wait_until(
            lambda: len(first.assigned) == len(second.assigned) == 2 and first.assigned | second.assigned == everything,
            first,
            second,
            what="two members share the partitions",
        )
        sent |= fill(confluent, topic, "together")
        wait_until(lambda: {*first.values, *second.values} == sent, first, second, what="together they read all")
        assert any(value is not None and value.startswith(b"together") for value in second.values)

        second.leave()
        sent |= fill(confluent, topic, "again")
        wait_until(
            lambda: first.assigned == everything and {*first.values, *second.values} == sent,
            first,
            what="one has all again",
        )
        first.leave()
    assert in_order(first)
    assert in_order(second)
    assert confluent.committed(topic, group.name) == dict.fromkeys(range(PARTITIONS), 30)


def test_a_group_goes_on_where_it_committed(client: Client, confluent: Confluent, topic: str) -> None:
    confluent.create_topic(topic, PARTITIONS)
    sent = fill(confluent, topic, "first", count=25)
    with group_of(topic) as group:
        first = group.join(client, client.assignors[0], limit=33)  # stops in the middle of a partition
        wait_until(lambda: len(first.read) == 33, first, what="so much is read")
        first.leave()
        assert sum(confluent.committed(topic, group.name).values()) == 33

        second = group.join(client, client.assignors[0])
        wait_until(lambda: {*first.values, *second.values} == sent, first, second, what="the rest is read")
        second.leave()
    assert Counter(first.values + second.values) == Counter(sent)  # none twice
    assert in_order(second)


def test_every_client_tells_what_was_committed(admin_client: Client, confluent: Confluent, topic: str) -> None:
    confluent.create_topic(topic, PARTITIONS)
    fill(confluent, topic, "some", count=3)
    with group_of(topic) as group:
        reader = group.join(confluent, "range")
        wait_until(lambda: len(reader.read) == 3 * PARTITIONS, reader, what="all is read")
        reader.leave()
    assert admin_client.committed(topic, group.name) == dict.fromkeys(range(PARTITIONS), 3)
    assert admin_client.committed(topic, "no-such-group") == {}


def test_a_static_member_comes_back_without_a_rebalance(client: Client, confluent: Confluent, topic: str) -> None:
    if not client.static_membership:
        pytest.skip(f"{client.name} knows no group.instance.id")
    confluent.create_topic(topic, PARTITIONS)
    sent = fill(confluent, topic, "before")
    with group_of(topic) as group:
        one = group.join(client, client.assignors[0], instance_id="one")
        wait_until(lambda: len(one.assigned) == PARTITIONS, one, what="the first has all")
        two = group.join(client, client.assignors[0], instance_id="two")
        wait_until(lambda: len(one.assigned) == len(two.assigned) == 2, one, two, what="they share")
        wait_until(lambda: {*one.values, *two.values} == sent, one, two, what="all is read")
        kept, given = one.assigned, two.assigned

        two.leave()  # says nothing to the broker: its place is kept for the session timeout
        sent |= fill(confluent, topic, "meanwhile")
        back = group.join(client, client.assignors[0], instance_id="two")
        wait_until(lambda: {*one.values, *two.values, *back.values} == sent, one, back, what="all is read again")
        assert one.assigned == kept
        assert back.assigned == given
        assert all(
            partition in kept for partition, record in one.read if record.value in sent and b"meanwhile" in record.value
        )


def test_clients_of_all_kinds_share_one_group(bootstrap: str, confluent: Confluent, topic: str) -> None:
    members = [client for client in installed_clients(bootstrap) if "range" in client.assignors]
    confluent.create_topic(topic, PARTITIONS)
    with group_of(topic) as group:
        # Where there are fewer clients than partitions (some are not installed), some come twice.
        readers = [group.join(client, "range") for client in (members * PARTITIONS)[:PARTITIONS]]
        wait_until(lambda: all(len(reader.assigned) == 1 for reader in readers), *readers, what="each has a partition")
        assert frozenset.union(*(reader.assigned for reader in readers)) == set(range(PARTITIONS))
        sent = fill(confluent, topic, "all")
        wait_until(lambda: set().union(*(reader.values for reader in readers)) == sent, *readers, what="all is read")

        # One after the other gives way to another kind.
        for client in members[PARTITIONS:]:
            readers.pop(0).leave()
            readers.append(group.join(client, "range"))
        wait_until(lambda: all(len(reader.assigned) == 1 for reader in readers), *readers, what="each has a partition")
        sent = fill(confluent, topic, "others")
        wait_until(
            lambda: set().union(*(reader.values for reader in readers)) >= sent,
            *readers,
            what="all is read by the others",
        )
