"""Any sequence of requests, time, crashes and failing appends keeps what is promised of groups."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.groups.group import Group, GroupState
from protocol.errors import ErrorCode
from tests.broker.groups.driving import Driver, subscription

E = ErrorCode

clients = st.integers(0, 4)
PROTOCOLS = (
    {"range": subscription("t")},
    {"range": subscription("t", "u"), "sticky": subscription("t", "u")},
    {"sticky": subscription("t"), "range": subscription("t")},
)


class Client:
    """What one consumer knows of itself."""

    def __init__(self, number: int) -> None:
        self.instance_id = f"static-{number}" if number >= 3 else None
        self.member_id = ""
        self.generation_id = -1
        self.requests: list[str] = []


class Groups(RuleBasedStateMachine):
    @initialize(delay_ms=st.sampled_from([0, 3_000]), max_size=st.sampled_from([2, 100]))
    def begin(self, delay_ms: int, max_size: int) -> None:
        self.d = Driver(initial_rebalance_delay_ms=delay_ms, max_size=max_size)
        self.clients = [Client(number) for number in range(5)]
        self.count = 0
        self.generation_id = 0
        self.group: Group | None = None
        self.durable: dict[int, int] = {}
        """Offsets that were acknowledged."""

    def token(self, client: Client, kind: str) -> str:
        self.count += 1
        token = f"{kind} {self.count}"
        client.requests.append(token)
        return token

    @rule(
        number=clients,
        protocols=st.sampled_from(PROTOCOLS),
        version=st.sampled_from([3, 8, 9]),
        rebalance_timeout_ms=st.sampled_from([0, 4_000, 30_000]),
    )
    def join(self, number: int, protocols: dict[str, bytes], version: int, rebalance_timeout_ms: int) -> None:
        client = self.clients[number]
        self.d.join(
            self.token(client, "join"),
            client.member_id,
            instance_id=client.instance_id,
            protocols=protocols,
            version=version,
            rebalance_timeout_ms=rebalance_timeout_ms,
        )
        self.hear(client)

    @rule(number=clients)
    def sync(self, number: int) -> None:
        client = self.clients[number]
        group = self.d.shard.groups.get("g")
        assignments = {member_id: member_id.encode() for member_id in group.members} if group else {}
        self.d.sync(
            self.token(client, "sync"),
            client.member_id,
            client.generation_id,
            assignments,
            instance_id=client.instance_id,
        )
        self.hear(client)

    @rule(number=clients)
    def heartbeat(self, number: int) -> None:
        client = self.clients[number]
        self.d.heartbeat(client.member_id, client.generation_id, instance_id=client.instance_id)

    @rule(number=clients)
    def leave(self, number: int) -> None:
        client = self.clients[number]
        if client.instance_id is None:
            self.d.leave(client.member_id)
        else:
            self.d.leave(instance_ids=[client.instance_id])

    @rule(number=clients)
    def forget(self, number: int) -> None:
        """The client's process is started anew."""
        client = self.clients[number]
        client.member_id, client.generation_id = "", -1
        client.requests.clear()

    @rule(number=clients, partition=st.integers(0, 2))
    def commit(self, number: int, partition: int) -> None:
        client = self.clients[number]
        token = self.token(client, f"commit {partition}")
        self.d.commit(
            token,
            {("t", partition): self.count},
            member_id=client.member_id,
            generation_id=client.generation_id,
            instance_id=client.instance_id if client.member_id else None,
        )

    @rule(ms=st.sampled_from([0, 500, 2_999, 5_000, 10_000, 30_000]))
    def wait(self, ms: int) -> None:
        self.d.after(ms)

    @rule()
    def hold_appends(self) -> None:
        self.d.holds_appends = True

    @rule(error=st.sampled_from([E.NONE, E.NONE, E.COORDINATOR_NOT_AVAILABLE, E.MESSAGE_TOO_LARGE]))
    def store(self, error: ErrorCode) -> None:
        if self.d.waiting:
            self.d.store(error)

    @rule()
    def let_appends_through(self) -> None:
        self.d.holds_appends = False
        while self.d.waiting:
            self.d.store()

    @rule()
    def expire(self) -> None:
        self.d.expire()

    @rule(error=st.sampled_from([E.NONE, E.COORDINATOR_NOT_AVAILABLE]))
    def write_the_log_anew(self, error: ErrorCode) -> None:
        start = len(self.d.log)
        self.d.log += list(self.d.shard.snapshot())
        while self.d.waiting:  # what is on its way comes through, or the first of it does not
            self.d.store(error)
            error = E.NONE
        if self.d.shard.snapshot_is_whole:
            del self.d.log[:start]

    @rule()
    def crash(self) -> None:
        for client in self.clients:
            self.hear(client)
            client.requests.clear()  # their answers never come
        self.d.restart()

    def hear(self, client: Client) -> None:
        for token in list(client.requests):
            answer = self.d.replies.get(token)
            if answer is None:
                continue
            client.requests.remove(token)
            if token.startswith("join"):
                if answer.error_code == E.MEMBER_ID_REQUIRED:
                    client.member_id = answer.member_id
                elif not answer.error_code:
                    client.member_id, client.generation_id = answer.member_id, answer.generation_id
                elif answer.error_code in (E.UNKNOWN_MEMBER_ID, E.FENCED_INSTANCE_ID):
                    client.member_id, client.generation_id = "", -1

    @invariant()
    def the_machine_is_sound(self) -> None:
        group: Group | None = self.d.shard.groups.get("g")
        for client in self.clients:
            self.hear(client)
        for token, answer in self.d.replies.items():
            if token.startswith("commit") and answer == [0]:
                partition, number = int(token.split()[1]), int(token.split()[2])
                self.durable[partition] = max(self.durable.get(partition, 0), number)
        self.d.replies.clear()
        if group is None:
            return
        members = group.members
        assert (group.leader is None) == (not members)
        assert group.leader is None or group.leader in members
        if group is self.group:
            assert group.generation_id >= self.generation_id
        self.group = group  # another one, after a crash or when the former was forgotten
        self.generation_id = group.generation_id
        assert group.static_members == {
            member.group_instance_id: member_id for member_id, member in members.items() if member.is_static
        }
        assert all(member.member_id == member_id for member_id, member in members.items())
        waiting = [member for member in members.values() if member.awaiting_join is not None]
        assert group.awaiting_join_count == len(waiting)
        assert group._members_bytes == sum(member.size_bytes for member in members.values())
        if group.state is GroupState.EMPTY:
            assert not members
        elif group.state is GroupState.STABLE:
            assert members
            assert all(member.awaiting_sync is None for member in members.values())
            assert group.protocol_name in group._common_protocols()
        elif group.state is GroupState.PREPARING_REBALANCE:
            assert group.rebalance_timer.due_ms is not None, "a rebalance ends"
            assert all(member.awaiting_sync is None for member in members.values())
        for member in members.values():
            alive = member.session.due_ms is not None
            assert alive or member.awaiting_join is not None or member.awaiting_sync is not None, "silence is noticed"
        for topic, partition, value in group.offsets:
            assert topic == "t"
            assert value.offset >= self.durable.get(partition, 0), "an acknowledged commit is there"

    def teardown(self) -> None:
        if hasattr(self, "d"):
            self.let_appends_through()
            for partition, number in self.durable.items():
                committed = self.d.committed("t", partition)
                assert committed is not None
                assert committed >= number


TestGroups = Groups.TestCase
TestGroups.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
