"""Groups on a real node, over the wire: durable, found again after restarts, bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.groups import coordinator as coordinator_module
from broker.groups import writer as writer_module
from broker.groups.coordinator import OFFSETS_TOPIC, GroupCoordinator, partition_of
from broker.groups.events import Commit, CommittedOffset
from broker.groups.records import OffsetKey, decode_key, decode_offset_value
from broker.node import Node
from broker.partition import NO_ROOM, Partition
from protocol.errors import ErrorCode
from protocol.messages.delete_groups import DeleteGroupsRequest
from protocol.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from protocol.messages.describe_groups import DescribeGroupsRequest
from protocol.messages.find_coordinator import FindCoordinatorRequest
from protocol.messages.heartbeat import HeartbeatRequest
from protocol.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from protocol.messages.leave_group import LeaveGroupRequest, MemberIdentity
from protocol.messages.list_groups import ListGroupsRequest
from protocol.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from protocol.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
)
from protocol.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
    OffsetFetchRequestTopics,
)
from protocol.messages.sync_group import SyncGroupRequest, SyncGroupRequestAssignment
from protocol.record_set import iter_batches, iter_records
from s3stream.errors import StorageError
from s3stream.objectstore import Unavailable
from tests.broker.conftest import StartNode
from tests.broker.groups.driving import subscription
from tests.broker.wire import Wire, batch, eventually, produce_request, records_in

E = ErrorCode
SETTINGS: dict[str, Any] = {
    "group_initial_rebalance_delay_ms": 0,
    "group_min_session_timeout_ms": 10,
    "offsets_topic_num_partitions": 4,
}


@pytest.fixture
async def node(start_node: StartNode) -> AsyncIterator[Node]:
    async with start_node(**SETTINGS) as running:
        yield running


async def find(wire: Wire) -> None:
    response = await wire.call("FindCoordinator", 6, FindCoordinatorRequest(coordinator_keys=["g"]))
    assert response.coordinators[0].error_code == 0, response


async def ready(wire: Wire) -> None:
    """Groups may be loading for a moment after a start."""
    for _ in range(1000):
        if not (await wire.call("ListGroups", 5, ListGroupsRequest())).error_code:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the groups are not loaded")


def join_request(member_id: str = "", **fields: Any) -> JoinGroupRequest:
    values: dict[str, Any] = {
        "group_id": "g",
        "session_timeout_ms": 30_000,
        "rebalance_timeout_ms": 30_000,
        "member_id": member_id,
        "protocol_type": "consumer",
        "protocols": [JoinGroupRequestProtocol(name="range", metadata=subscription("t"))],
        **fields,
    }
    return JoinGroupRequest(**values)


async def commit(
    wire: Wire, offsets: dict[int, int], *, version: int = 9, topic: str = "t", **fields: Any
) -> list[int]:
    """Commit and return the errors."""
    named = {"topic_id": topic} if version >= 10 else {"name": topic}
    partitions = [
        OffsetCommitRequestPartition(partition_index=index, committed_offset=offset, committed_metadata="m")
        for index, offset in offsets.items()
    ]
    request = OffsetCommitRequest(
        **{"group_id": "g", "topics": [OffsetCommitRequestTopic(**named, partitions=partitions)], **fields}
    )
    response = await wire.call("OffsetCommit", version, request)
    return [partition.error_code for partition in response.topics[0].partitions]


async def committed(wire: Wire, *partitions: int, topic: str = "t") -> list[int]:
    """Committed offsets, as version 7 tells them."""
    request = OffsetFetchRequest(
        group_id="g", topics=[OffsetFetchRequestTopic(name=topic, partition_indexes=partitions)]
    )
    response = await wire.call("OffsetFetch", 7, request)
    assert response.error_code == 0, response
    return [partition.committed_offset for partition in response.topics[0].partitions]


async def join_alone(wire: Wire, **fields: Any) -> Any:
    asked = await wire.call("JoinGroup", 9, join_request(**fields))
    joined = await wire.call("JoinGroup", 9, join_request(asked.member_id, **fields))
    assert joined.error_code == 0, joined
    assignment = [SyncGroupRequestAssignment(member_id=joined.member_id, assignment=b"all")]
    sync = SyncGroupRequest(
        group_id="g", generation_id=joined.generation_id, member_id=joined.member_id, assignments=assignment
    )
    assert (await wire.call("SyncGroup", 3, sync)).assignment == b"all"
    return joined


async def test_every_version_of_every_request_is_answered(wire: Wire) -> None:
    await find(wire)
    topic_id = await wire.create_topic("t")
    for version in range(10):
        joined = await wire.call("JoinGroup", version, join_request(group_id=f"join-{version}"))
        assert joined.error_code == (E.MEMBER_ID_REQUIRED if version >= 4 else 0)
    joined = await join_alone(wire)
    for version in range(6):
        request = SyncGroupRequest(group_id="g", generation_id=1, member_id=joined.member_id)
        assert (await wire.call("SyncGroup", version, request)).assignment == b"all"
    for version in range(5):
        beat = HeartbeatRequest(group_id="g", generation_id=1, member_id=joined.member_id)
        assert (await wire.call("Heartbeat", version, beat)).error_code == 0
    member = {"member_id": joined.member_id, "generation_id_or_member_epoch": 1}
    for version in range(2, 11):
        topic: Any = topic_id if version >= 10 else "t"
        assert await commit(wire, {0: version, 7: 1}, version=version, topic=topic, **member) == [
            0,
            E.UNKNOWN_TOPIC_OR_PARTITION,
        ]
    for version in range(1, 8):
        request = OffsetFetchRequest(group_id="g", topics=[OffsetFetchRequestTopic(name="t", partition_indexes=[0, 1])])
        found = (await wire.call("OffsetFetch", version, request)).topics[0].partitions
        assert [(each.committed_offset, each.metadata, each.error_code) for each in found] == [
            (10, "m", 0),
            (-1, "", 0),
        ]
    for version in range(8, 11):
        wanted = OffsetFetchRequestTopics(name="t", topic_id=topic_id, partition_indexes=[0])
        for topics in ([wanted], None):
            groups = [
                OffsetFetchRequestGroup(group_id="g", topics=topics),
                OffsetFetchRequestGroup(group_id="nobody", topics=None),
            ]
            some, none = (await wire.call("OffsetFetch", version, OffsetFetchRequest(groups=groups))).groups
            assert [each.committed_offset for each in some.topics[0].partitions] == [10]
            assert list(none.topics) == []
    for version in range(7):
        described = (await wire.call("DescribeGroups", version, DescribeGroupsRequest(groups=["g", "nobody"]))).groups
        assert (described[0].group_state, described[0].protocol_data) == ("Stable", "range")
        assert described[0].members[0].member_assignment == b"all"
        assert described[0].members[0].client_host == "/127.0.0.1"
        assert described[1].group_state == "Dead"
        assert described[1].error_code == (E.GROUP_ID_NOT_FOUND if version >= 6 else 0)
    for version in range(6):
        listed = (await wire.call("ListGroups", version, ListGroupsRequest(states_filter=["stable"]))).groups
        assert "g" in [group.group_id for group in listed]
        assert (len(listed) == 1) == (version >= 4)
    for version in range(3):
        deleted = await wire.call("DeleteGroups", version, DeleteGroupsRequest(groups_names=["g", "nobody", "g"]))
        assert [(each.group_id, each.error_code) for each in deleted.results] == [
            ("g", E.NON_EMPTY_GROUP),
            ("nobody", E.GROUP_ID_NOT_FOUND),
        ]
    for version in range(6):
        leave = LeaveGroupRequest(
            group_id="g", member_id=joined.member_id, members=[MemberIdentity(member_id=joined.member_id)]
        )
        left = await wire.call("LeaveGroup", version, leave)
        error = left.error_code if version < 3 else left.members[0].error_code
        assert error == (0 if version == 0 else E.UNKNOWN_MEMBER_ID)


async def test_what_is_asked_twice_is_answered_once(wire: Wire) -> None:
    await find(wire)
    await wire.create_topic("t", 2)
    await commit(wire, {0: 5, 1: 6})
    wanted = OffsetFetchRequestTopics(name="t", partition_indexes=[0, 1, 0, 0])
    groups = [OffsetFetchRequestGroup(group_id="g", topics=[wanted, wanted])] * 3
    [answer] = (await wire.call("OffsetFetch", 9, OffsetFetchRequest(groups=groups))).groups
    assert [[each.committed_offset for each in topic.partitions] for topic in answer.topics] == [[5, 6], []]
    described = await wire.call("DescribeGroups", 5, DescribeGroupsRequest(groups=["g"] * 1_000))
    assert len(described.groups) == 1


async def test_topics_are_known_by_id(wire: Wire) -> None:
    await find(wire)
    await wire.create_topic("t")
    unknown: Any = bytes(15) + b"\1"
    assert await commit(wire, {0: 1}, version=10, topic=unknown) == [E.UNKNOWN_TOPIC_ID]
    wanted = OffsetFetchRequestTopics(topic_id=unknown, partition_indexes=[0])
    request = OffsetFetchRequest(groups=[OffsetFetchRequestGroup(group_id="g", topics=[wanted])])
    answer = (await wire.call("OffsetFetch", 10, request)).groups[0].topics[0].partitions[0]
    assert (answer.error_code, answer.committed_offset) == (E.UNKNOWN_TOPIC_ID, -1)


async def test_nobody_coordinates_before_the_topic_is_there(wire: Wire) -> None:
    assert (await wire.call("JoinGroup", 9, join_request())).error_code == E.NOT_COORDINATOR
    assert (await wire.call("JoinGroup", 9, join_request(group_id=""))).error_code == E.INVALID_GROUP_ID
    beat = await wire.call("Heartbeat", 4, HeartbeatRequest(group_id="g"))
    assert beat.error_code == E.NOT_COORDINATOR
    await find(wire)
    assert (await wire.call("JoinGroup", 9, join_request())).error_code == E.MEMBER_ID_REQUIRED
    bad = await wire.call("JoinGroup", 9, join_request(group_instance_id="no spaces"))
    assert bad.error_code == E.INVALID_REQUEST


async def test_groups_and_offsets_are_there_after_a_restart(start_node: StartNode) -> None:
    async with start_node(**SETTINGS) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await find(wire)
        await wire.create_topic("t", 3)
        joined = await join_alone(wire)
        member = {"member_id": joined.member_id, "generation_id_or_member_epoch": 1}
        assert await commit(wire, {0: 10, 1: 11}, **member) == [0, 0]
    async with start_node(**SETTINGS) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await ready(wire)
        assert await committed(wire, 0, 1, 2) == [10, 11, -1]
        beat = HeartbeatRequest(group_id="g", generation_id=1, member_id=joined.member_id)
        assert (await wire.call("Heartbeat", 4, beat)).error_code == 0
        assert await commit(wire, {2: 12}, **member) == [0]
        assert await committed(wire, 2) == [12]


async def test_the_log_is_in_kafkas_own_format(wire: Wire) -> None:
    await find(wire)
    await wire.create_topic("t")
    await commit(wire, {0: 5})
    data = await wire.fetch(OFFSETS_TOPIC, partition=partition_of("g", 4))
    [record] = records_in(data)
    assert record.key is not None
    assert record.value is not None
    assert decode_key(record.key) == OffsetKey("g", "t", 0)
    value = decode_offset_value(record.value)
    assert (value.offset, value.metadata) == (5, "m")


async def test_offsets_go_with_their_topic_and_their_group(wire: Wire) -> None:
    await find(wire)
    await wire.create_topic("t", 2)
    await commit(wire, {0: 5, 1: 6})
    delete = OffsetDeleteRequest(
        group_id="g",
        topics=[
            OffsetDeleteRequestTopic(name="t", partitions=[OffsetDeleteRequestPartition(partition_index=0)]),
            OffsetDeleteRequestTopic(name="no", partitions=[OffsetDeleteRequestPartition(partition_index=0)]),
        ],
    )
    deleted = await wire.call("OffsetDelete", 0, delete)
    assert [topic.partitions[0].error_code for topic in deleted.topics] == [0, E.UNKNOWN_TOPIC_OR_PARTITION]
    assert await committed(wire, 0, 1) == [-1, 6]
    await wire.call("DeleteTopics", 6, DeleteTopicsRequest(topics=[DeleteTopicState(name="t")], timeout_ms=1000))
    await wire.create_topic("t", 2)
    assert await committed(wire, 0, 1) == [-1, -1]
    await commit(wire, {0: 1})
    gone = await wire.call("DeleteGroups", 2, DeleteGroupsRequest(groups_names=["g"]))
    assert gone.results[0].error_code == 0
    assert list((await wire.call("ListGroups", 5, ListGroupsRequest())).groups) == []


async def test_a_silent_member_loses_its_place(node: Node, wire: Wire) -> None:
    await find(wire)
    await join_alone(wire, session_timeout_ms=50)
    [group] = node.running.broker.groups
    await eventually(lambda: not group.members, "the end of the session")


async def test_nobody_is_given_up_right_after_the_loop_was_blocked(node: Node, wire: Wire) -> None:
    await find(wire)
    joined = await join_alone(wire, session_timeout_ms=100)
    [group] = node.running.broker.groups
    time.sleep(0.8)  # noqa: ASYNC251 (that is what is tested)
    await asyncio.sleep(0.01)
    assert joined.member_id in group.members  # its heartbeat may wait in its socket
    beat = HeartbeatRequest(group_id="g", generation_id=1, member_id=joined.member_id)
    assert (await wire.call("Heartbeat", 4, beat)).error_code == 0
    await eventually(lambda: not group.members, "the end of the session")


async def test_a_member_that_hangs_up_does_not_stop_the_others(node: Node, wire: Wire) -> None:
    await find(wire)
    first = await join_alone(wire)
    gone = await Wire.connect(node.bootstrap_servers)
    asked = await gone.call("JoinGroup", 9, join_request())
    gone.send("JoinGroup", 9, join_request(asked.member_id, session_timeout_ms=1_000))
    await eventually(lambda: next(iter(node.running.broker.groups)).awaiting_join_count, "the second join")
    gone.writer.close()
    again = await wire.call("JoinGroup", 9, join_request(first.member_id))
    assert (again.generation_id, len(again.members)) == (2, 2)  # nobody knows yet that it is gone


async def test_a_long_log_is_written_anew(start_node: StartNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "SNAPSHOT_MIN_RECORDS", 100)
    monkeypatch.setattr(coordinator_module, "SNAPSHOT_ROWS", 3)
    monkeypatch.setattr(coordinator_module, "SNAPSHOT_RETRY_DELAY_S", 0.0)
    async with start_node(**SETTINGS) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await find(wire)
        await wire.create_topic("t", 8)
        topic = node.running.broker.topics.by_name[OFFSETS_TOPIC]
        partition = topic.partitions[partition_of("g", 4)]
        assert partition is not None
        for number in range(60):
            assert await commit(wire, dict.fromkeys(range(8), number)) == [0] * 8
        await eventually(lambda: partition.log_start_offset > 100, "a trimmed log")
    async with start_node(**SETTINGS) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await ready(wire)
        assert await committed(wire, *range(8)) == [59] * 8


async def test_a_trim_that_failed_is_tried_again_without_another_snapshot(
    node: Node, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_module, "SNAPSHOT_MIN_RECORDS", 20)
    monkeypatch.setattr(coordinator_module, "SNAPSHOT_RETRY_DELAY_S", 0.0)
    await find(wire)
    await wire.create_topic("t")
    place = node.running.broker.groups._places[partition_of("g", 4)]
    trims: list[int] = []

    async def unavailable(offset: int) -> None:
        trims.append(offset)
        raise Unavailable("no")

    with monkeypatch.context() as patched:
        patched.setattr(type(place.partition.stream), "trim", lambda self, offset: unavailable(offset))
        for number in range(40):
            await commit(wire, {0: number})
        await eventually(lambda: len(trims) > 2, "more than one attempt")
    assert len(set(trims)) == 1  # one snapshot
    assert place.partition.stream.next_offset <= 41  # of at most one record: the newest may have been on its way
    await commit(wire, {0: 40})
    await eventually(lambda: place.partition.log_start_offset == trims[0], "a trimmed log")


async def test_a_commit_that_fails_while_a_snapshot_passes_it_leaves_the_one_before(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    append_own = Partition.append_own

    def hold(self: Partition, records: bytes, count: int, timestamp_ms: int, on_done: Any) -> int:
        """Keep the one commit of offset 200 under way until the test says how it ends."""
        values = [
            decode_offset_value(record.value)
            for record in iter_records(records, max_output_bytes=1 << 20)
            if record.value is not None
        ]
        if not held and any(value.offset == 200 for value in values):
            held.append(on_done)
            return 0
        return append_own(self, records, count, timestamp_ms, on_done)

    async with start_node(**SETTINGS) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t", partitions=8)
        await find(wire)
        assert await commit(wire, dict.fromkeys(range(8), 100)) == [0] * 8
        coordinator = node.running.broker.groups
        place = coordinator._places[partition_of("g", 4)]
        monkeypatch.setattr(Partition, "append_own", hold)
        async with await Wire.connect(node.bootstrap_servers) as other:
            second = asyncio.create_task(commit(other, {7: 200}))
            await eventually(lambda: held, "a commit under way")
            written = place.partition.stream.confirmed_offset
            coordinator.snapshot_later(place)
            await eventually(lambda: place.partition.stream.confirmed_offset == written + 7, "a snapshot without it")
            held[0](StorageError("planted"))
            assert await second == [E.COORDINATOR_NOT_AVAILABLE]
        await eventually(lambda: not place.snapshot_under_way, "the end of the snapshot")
        assert await committed(wire, 7) == [100]
    async with start_node(**SETTINGS) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await ready(wire)
        assert await committed(wire, *range(8)) == [100] * 8


async def test_offsets_expire(start_node: StartNode) -> None:
    clock = {"ms": 1_700_000_000_000}
    settings = {**SETTINGS, "offsets_retention_minutes": 1, "offsets_retention_check_interval_ms": 20}
    async with (
        start_node(now_ms=lambda: clock["ms"], **settings) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await find(wire)
        await wire.create_topic("t")
        await commit(wire, {0: 1})
        assert len(list(node.running.broker.groups)) == 1
        clock["ms"] += 60_000
        await eventually(lambda: not list(node.running.broker.groups), "the end of the group")
        assert await committed(wire, 0) == [-1]


async def test_two_hundred_members_come_crash_and_go(node: Node, wire: Wire) -> None:
    """Each one a connection of its own, as consumers are."""
    count = 200
    await find(wire)
    broker = node.running.broker
    wires = [await Wire.connect(node.bootstrap_servers) for _ in range(count)]

    async def settle(ids: dict[int, str]) -> None:
        """Everybody joins, the leader assigns, everybody gets its own."""
        options = {"session_timeout_ms": 2_000, "rebalance_timeout_ms": 2_000}
        while True:
            joins = await asyncio.gather(
                *(wires[at].call("JoinGroup", 9, join_request(member_id, **options)) for at, member_id in ids.items())
            )
            for at, joined in zip(ids, joins, strict=True):
                ids[at] = joined.member_id
            if any(joined.error_code for joined in joins) or len({j.generation_id for j in joins}) > 1:
                continue
            leaders = [joined for joined in joins if joined.members]
            assert len(leaders) <= 1
            if not leaders:  # it crashed, and nobody knows yet: the others go on
                generation = joins[0].generation_id
                await asyncio.gather(
                    *(
                        wires[at].call(
                            "Heartbeat",
                            4,
                            HeartbeatRequest(group_id="g", generation_id=generation, member_id=member_id),
                        )
                        for at, member_id in ids.items()
                    )
                )
                await asyncio.sleep(0.1)
                continue
            members = [member.member_id for member in leaders[0].members]
            if set(members) != set(ids.values()):
                continue
            given = [SyncGroupRequestAssignment(member_id=each, assignment=each.encode()) for each in members]
            generation = joins[0].generation_id
            syncs = await asyncio.gather(
                *(
                    wires[at].call(
                        "SyncGroup",
                        5,
                        SyncGroupRequest(
                            group_id="g",
                            generation_id=generation,
                            member_id=joined.member_id,
                            protocol_type="consumer",
                            protocol_name="range",
                            assignments=given if joined.members else (),
                        ),
                    )
                    for at, joined in zip(ids, joins, strict=True)
                )
            )
            if not any(synced.error_code for synced in syncs):
                assert [synced.assignment.decode() for synced in syncs] == list(ids.values())
                return

    ids = dict.fromkeys(range(count), "")
    await settle(ids)
    [group] = broker.groups
    assert (len(group.members), group.state.value) == (count, "Stable")
    for at in range(0, count, 2):  # every second one crashes: it hangs up, and says nothing
        wires[at].writer.close()
        del ids[at]
    await settle(ids)
    assert len(group.members) == count // 2
    leaving = [MemberIdentity(member_id=member_id) for member_id in ids.values()]
    left = await wire.call("LeaveGroup", 5, LeaveGroupRequest(group_id="g", members=leaving))
    assert [member.error_code for member in left.members] == [0] * (count // 2)
    assert group.state.value == "Empty"
    for each in wires:
        each.writer.close()


async def test_commits_wait_while_the_log_is_full(start_node: StartNode) -> None:
    async with (
        start_node(**SETTINGS) as node,  # a WAL of 16 MiB
        await Wire.connect(node.bootstrap_servers) as wire,
        await Wire.connect(node.bootstrap_servers) as producer,
    ):
        await find(wire)
        await wire.create_topic("t")
        joined = await join_alone(wire)
        member = {"member_id": joined.member_id, "generation_id_or_member_epoch": 1}
        node.running.store.failing = True
        count = 40
        for _ in range(count):
            producer.send("Produce", 9, produce_request("t", batch(bytes(900_000))))
        await eventually(lambda: node.running.server.metrics.produce_stalls > 0, "a full log")
        number = 0
        waiting: asyncio.Task[list[int]] | None = None
        while waiting is None:  # what is too small for a batch of the producer's may still take some commits
            one = asyncio.create_task(commit(wire, {0: number}, **member))
            await asyncio.wait([one], timeout=0.5)
            if one.done():
                assert one.result() == [0]
                number += 1
            else:
                waiting = one
        async with await Wire.connect(node.bootstrap_servers) as other:
            assert await committed(other, 0) == [number - 1 if number else -1]  # not before it is durable
            beat = HeartbeatRequest(group_id="g", generation_id=1, member_id=joined.member_id)
            assert (await other.call("Heartbeat", 4, beat)).error_code == 0
        node.running.store.failing = False
        assert await waiting == [0]
        assert await committed(wire, 0) == [number]
        for _ in range(count):
            await producer.receive()


async def test_what_waits_for_room_is_bounded(node: Node, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    await find(wire)
    await wire.create_topic("t")
    monkeypatch.setattr(writer_module, "MAX_WAITING_BYTES", 200)
    place = node.running.broker.groups._places[partition_of("g", 4)]
    monkeypatch.setattr(type(place.partition), "append_own", lambda *_: NO_ROOM)
    request = OffsetCommitRequest(
        group_id="g",
        topics=[OffsetCommitRequestTopic(name="t", partitions=[OffsetCommitRequestPartition(committed_offset=1)])],
    )
    others = [await Wire.connect(node.bootstrap_servers) for _ in range(3)]
    for count, other in enumerate(others, 1):
        other.send("OffsetCommit", 8, request)
        if count < 3:
            await eventually(lambda n=count: len(place.writer._waiting) == n, "a commit that waits")  # type: ignore[misc]
        else:
            await eventually(lambda: place.writer._appends[-1].error, "a commit that is refused")
    monkeypatch.undo()
    node.running.storage._wake_room()
    errors = [(await other.receive()).topics[0].partitions[0].error_code for other in others]
    assert errors == [0, 0, E.COORDINATOR_NOT_AVAILABLE]
    for other in others:
        other.writer.close()


async def test_commits_of_one_moment_share_a_batch(node: Node, wire: Wire) -> None:
    await find(wire)
    await wire.create_topic("t", 10)
    answers: list[list[int]] = []
    for partition in range(10):
        node.running.broker.groups.submit(
            "g",
            Commit(
                token=answers.append,
                group_id="g",
                member_id="",
                group_instance_id=None,
                generation_id=-1,
                retention_ms=-1,
                offsets=[CommittedOffset("t", partition, 7, 0, "")],
            ),
        )
    await eventually(lambda: len(answers) == 10, "ten answers")
    assert answers == [[0]] * 10
    assert await committed(wire, *range(10)) == [7] * 10
    data = await wire.fetch(OFFSETS_TOPIC, partition=partition_of("g", 4))
    assert data.records is not None
    assert not isinstance(data.records, list | tuple)
    assert len(list(iter_batches(data.records))) == 1
    assert len(records_in(data)) == 10


async def test_nothing_is_answered_from_what_is_not_loaded(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_node(**SETTINGS) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await find(wire)
        await wire.create_topic("t")
        joined = await join_alone(wire)
        await commit(wire, {0: 5}, member_id=joined.member_id, generation_id_or_member_epoch=1)
    go_on = asyncio.Event()
    replayed = GroupCoordinator._replayed

    async def slowly(self: GroupCoordinator, place: Any) -> Any:
        await go_on.wait()
        return await replayed(self, place)

    monkeypatch.setattr(GroupCoordinator, "_replayed", slowly)
    async with start_node(**SETTINGS) as node, await Wire.connect(node.bootstrap_servers) as wire:
        member = {"group_id": "g", "generation_id": 1, "member_id": joined.member_id}
        assert (await wire.call("JoinGroup", 9, join_request(joined.member_id))).error_code == 14
        assert (await wire.call("SyncGroup", 5, SyncGroupRequest(**member))).error_code == E.REBALANCE_IN_PROGRESS
        assert (await wire.call("Heartbeat", 4, HeartbeatRequest(**member))).error_code == 0
        assert await commit(wire, {0: 6}) == [E.COORDINATOR_LOAD_IN_PROGRESS]
        asked = OffsetFetchRequest(groups=[OffsetFetchRequestGroup(group_id="g", topics=None)])
        assert (await wire.call("OffsetFetch", 9, asked)).groups[0].error_code == E.COORDINATOR_LOAD_IN_PROGRESS
        old = OffsetFetchRequest(group_id="g", topics=[OffsetFetchRequestTopic(name="t", partition_indexes=[0])])
        answer = await wire.call("OffsetFetch", 1, old)
        assert answer.topics[0].partitions[0].error_code == E.COORDINATOR_LOAD_IN_PROGRESS
        assert (await wire.call("ListGroups", 5, ListGroupsRequest())).error_code == E.COORDINATOR_LOAD_IN_PROGRESS
        deleted = await wire.call("DeleteGroups", 2, DeleteGroupsRequest(groups_names=["g"]))
        assert deleted.results[0].error_code == E.COORDINATOR_LOAD_IN_PROGRESS
        go_on.set()
        await ready(wire)
        assert (await wire.call("Heartbeat", 4, HeartbeatRequest(**member))).error_code == 0
        assert await committed(wire, 0) == [5]


async def test_groups_end_with_their_topic(node: Node, wire: Wire) -> None:
    """Whoever waits is told to look for another coordinator, and finds none of what was."""
    await find(wire)
    await wire.create_topic("t")
    first = await join_alone(wire)
    async with await Wire.connect(node.bootstrap_servers) as other:
        asked = await other.call("JoinGroup", 9, join_request())
        other.send("JoinGroup", 9, join_request(asked.member_id))
        await eventually(lambda: next(iter(node.running.broker.groups)).awaiting_join_count, "a waiting join")
        gone = DeleteTopicsRequest(topics=[DeleteTopicState(name=OFFSETS_TOPIC)], timeout_ms=1000)
        await wire.call("DeleteTopics", 6, gone)
        assert (await other.receive()).error_code == E.NOT_COORDINATOR
    beat = HeartbeatRequest(group_id="g", generation_id=1, member_id=first.member_id)
    assert (await wire.call("Heartbeat", 4, beat)).error_code == E.NOT_COORDINATOR
    await find(wire)
    assert (await wire.call("Heartbeat", 4, beat)).error_code == E.UNKNOWN_MEMBER_ID
    assert node.running.broker.groups.memory_bytes == 0
