"""Offsets, their end and that of groups, memory, and the log: the machine of one partition."""

from __future__ import annotations

import pytest

from broker.groups.group import GroupState
from broker.groups.records import decode_key, encode_group_key
from protocol.errors import ErrorCode, Malformed
from tests.broker.groups.driving import DAY_MS, Driver, subscription

E = ErrorCode


# ---- commits ----------------------------------------------------------------------------------------------------------


def test_a_commit_is_seen_when_it_is_durable() -> None:
    d = Driver()
    d.holds_appends = True
    assert d.commit("commit", {("t", 0): 5, ("t", 1): 6}) is None
    assert d.committed("t") is None
    d.store()
    assert d.replies["commit"] == [0, 0]
    assert (d.committed("t", 0), d.committed("t", 1)) == (5, 6)


def test_a_commit_that_fails_changes_nothing() -> None:
    d = Driver()
    d.commit("first", {("t", 0): 5})
    d.holds_appends = True
    d.commit("second", {("t", 0): 6})
    d.store(E.COORDINATOR_NOT_AVAILABLE)
    assert d.replies["second"] == [E.COORDINATOR_NOT_AVAILABLE]
    d.commit("third", {("t", 0): 7})
    d.store(E.MESSAGE_TOO_LARGE)
    assert d.replies["third"] == [E.INVALID_COMMIT_OFFSET_SIZE]
    assert d.committed("t") == 5


def test_members_commit_in_their_generation() -> None:
    d = Driver()
    one, two = d.stable("one", "two")
    generation = d.group().generation_id
    assert d.commit("good", {("t", 0): 1}, member_id=one, generation_id=generation) == [0]
    assert d.commit("old", {("t", 0): 2}, member_id=one, generation_id=1) == [E.ILLEGAL_GENERATION]
    assert d.commit("stranger", {("t", 0): 2}, member_id="x", generation_id=generation) == [E.UNKNOWN_MEMBER_ID]
    assert d.commit("admin", {("t", 0): 2}) == [E.UNKNOWN_MEMBER_ID]  # not into a group that has members
    d.join("one again", one)  # members give up partitions while they join again
    assert d.commit("joining", {("t", 0): 3}, member_id=two, generation_id=generation) == [0]
    d.join("two again", two)
    assert d.commit("waiting", {("t", 0): 4}, member_id=two, generation_id=generation + 1) == [E.REBALANCE_IN_PROGRESS]
    assert d.committed("t") == 3


def test_a_commit_keeps_a_member_alive() -> None:
    d = Driver()
    [one] = d.stable("one")
    for number in range(3):
        d.after(9_000)
        assert d.commit(str(number), {("t", 0): number}, member_id=one, generation_id=1) == [0]


def test_whoever_names_a_generation_of_a_forgotten_group_is_told() -> None:
    d = Driver()
    assert d.commit("commit", {("t", 0): 1}, member_id="m", generation_id=3) == [E.ILLEGAL_GENERATION]
    assert d.shard.groups == {}


def test_an_empty_group_takes_commits_without_a_member() -> None:
    d = Driver()
    [one] = d.stable("one")
    d.leave(one)
    assert d.commit("admin", {("t", 0): 9}) == [0]
    assert d.committed("t") == 9


def test_too_long_a_text_is_refused_the_others_are_stored() -> None:
    d = Driver(metadata_max_bytes=4)
    assert d.commit("long", {("t", 0): 1}, metadata="üüü") == [E.OFFSET_METADATA_TOO_LARGE]  # six bytes
    assert d.commit("short", {("t", 0): 1}, metadata="üü") == [0]


# ---- deletion ---------------------------------------------------------------------------------------------------------


def test_offsets_of_what_nobody_subscribes_to_can_be_deleted() -> None:
    d = Driver()
    [one] = d.stable("one", protocols={"range": subscription("t")})
    for topic in ("t", "old"):
        d.commit(topic, {(topic, 0): 1}, member_id=one, generation_id=1)
    assert d.delete_offsets("delete", ("t", 0), ("old", 0), ("old", 9)) == [E.GROUP_SUBSCRIBED_TO_TOPIC, 0, 0]
    assert (d.committed("t"), d.committed("old")) == (1, None)
    d.restart()
    assert (d.committed("t"), d.committed("old")) == (1, None)


def test_offsets_of_other_groups_can_be_deleted_when_they_are_empty() -> None:
    d = Driver()
    [one] = d.stable("one", protocol_type="connect", protocols={"x": b"?"})
    assert d.delete_offsets("connect", ("t", 0)) == E.NON_EMPTY_GROUP
    d.leave(one)
    d.commit("commit", {("t", 0): 1})
    assert d.delete_offsets("empty", ("t", 0)) == [0]
    assert d.committed("t") is None


def test_nothing_is_deleted_of_nobody() -> None:
    d = Driver()
    assert d.delete_offsets("offsets", ("t", 0)) == E.GROUP_ID_NOT_FOUND
    assert d.delete_group("group") == E.GROUP_ID_NOT_FOUND


def test_a_group_with_members_cannot_be_deleted() -> None:
    d = Driver()
    [one] = d.stable("one")
    assert d.delete_group("too early") == E.NON_EMPTY_GROUP
    d.leave(one)
    d.commit("commit", {("t", 0): 1})
    d.holds_appends = True
    assert d.delete_group("now") is None
    d.store()
    d.store()
    assert d.replies["now"] == 0
    assert d.shard.groups == {}
    d.restart()
    assert d.shard.groups == {}


def test_a_deletion_takes_commits_along_that_are_under_way() -> None:
    d = Driver()
    d.holds_appends = True
    d.commit("commit", {("t", 0): 1})
    d.delete_group("delete")
    while d.waiting:
        d.store()
    assert (d.replies["commit"], d.replies["delete"]) == ([0], 0)
    d.restart()
    assert d.shard.groups == {}


def test_a_group_that_is_used_again_survives_its_deletion() -> None:
    d = Driver()
    d.commit("commit", {("t", 0): 1})
    d.holds_appends = True
    d.delete_group("delete")
    d.commit("again", {("t", 0): 2})
    while d.waiting:
        d.store()
    assert d.committed("t") == 2
    d.restart()
    assert d.committed("t") == 2


def test_offsets_of_a_deleted_topic_go_with_it() -> None:
    d = Driver()
    d.commit("commit", {("t", 0): 1, ("t", 1): 1, ("u", 0): 1})
    d.delete_topic("t")
    assert [topic for topic, _, _ in d.group().offsets] == ["u"]
    d.restart()
    assert [topic for topic, _, _ in d.group().offsets] == ["u"]


# ---- expiry (KIP-211) -------------------------------------------------------------------------------------------------


def test_offsets_of_a_group_age_while_it_has_no_members() -> None:
    d = Driver()
    [one] = d.stable("one")
    d.commit("commit", {("t", 0): 1}, member_id=one, generation_id=1)
    for _ in range(8 * 24 * 60):  # eight days of heartbeats
        d.after(60_000 // 8)
        d.heartbeat(one, 1)
    d.after(0)
    d.expire()
    assert d.committed("t") == 1
    d.leave(one)
    d.after(7 * DAY_MS - 1)
    d.expire()
    assert d.committed("t") == 1
    d.after(1)
    d.expire()
    assert d.shard.groups == {}
    d.restart()
    assert d.shard.groups == {}


def test_offsets_that_no_member_subscribes_to_age_from_their_commit() -> None:
    d = Driver(retention_ms=20_000)
    [one] = d.stable("one", protocols={"range": subscription("t")})
    d.commit("both", {("t", 0): 1, ("left", 0): 1}, member_id=one, generation_id=1)
    for _ in range(3):
        d.after(9_000)
        d.heartbeat(one, 1)
    d.expire()
    assert (d.committed("t"), d.committed("left")) == (1, None)


def test_offsets_without_a_group_age_from_their_commit() -> None:
    d = Driver()
    d.commit("first", {("t", 0): 1})
    d.after(6 * DAY_MS)
    d.commit("second", {("t", 1): 1})
    d.after(1 * DAY_MS)
    d.expire()
    assert (d.committed("t", 0), d.committed("t", 1)) == (None, 1)
    d.after(6 * DAY_MS)
    d.expire()
    assert d.shard.groups == {}


def test_an_old_client_says_how_long_its_offsets_are_kept() -> None:
    d = Driver()
    d.commit("short", {("t", 0): 1}, retention_ms=1_000)
    d.commit("usual", {("t", 1): 1})
    d.commit("for ever", {("t", 2): 1}, retention_ms=2**63 - 1)
    d.restart()
    d.after(1_000)
    d.expire()
    assert [d.committed("t", partition) for partition in range(3)] == [None, 1, 1]


def test_a_group_with_nothing_is_forgotten_at_the_next_look() -> None:
    d = Driver()
    [one] = d.stable("one")
    d.expire()
    assert d.group().state is GroupState.STABLE
    d.leave(one)
    d.expire()
    assert d.shard.groups == {}
    assert d.log[-1].value is None


def test_an_announced_member_keeps_its_group() -> None:
    d = Driver()
    d.join("join?")
    d.expire()
    assert d.join("join", "client-1").error_code == 0


# ---- memory (I13) -----------------------------------------------------------------------------------------------------


def test_beyond_its_memory_a_shard_takes_nothing_new() -> None:
    d = Driver(memory_bytes=40_000)
    [one] = d.stable("one")
    accepted = 0
    while d.commit(f"commit {accepted}", {("t", accepted): 1}, member_id=one, generation_id=1) == [0]:
        accepted += 1
        assert accepted < 1_000
    refused = d.commit("new", {("t", 999): 1}, member_id=one, generation_id=1)
    assert refused == [E.INVALID_COMMIT_OFFSET_SIZE]
    assert d.commit("known", {("t", 0): 2}, member_id=one, generation_id=1) == [0]
    assert d.join("two?").error_code == E.GROUP_MAX_SIZE_REACHED
    assert d.join("other?", group_id="h").error_code == E.GROUP_MAX_SIZE_REACHED
    assert d.join("one again", one).error_code == 0  # who is in stays in


def test_what_is_gone_frees_memory() -> None:
    d = Driver()
    budget = d.shard._budget
    ids = d.stable("one", "two")
    d.commit("commit", {("t", partition): 1 for partition in range(100)}, member_id=ids[0], generation_id=2)
    d.leave(*ids)
    assert budget.used_bytes > 30_000
    d.delete_group("delete")
    assert budget.used_bytes == 0


def test_a_member_may_not_say_more_than_a_quarter_of_all() -> None:
    d = Driver(memory_bytes=40_000)
    assert d.join("join?", protocols={"range": bytes(10_001)}).error_code == E.GROUP_MAX_SIZE_REACHED


# ---- the log ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["nothing", "a commit", "a deletion", "a rebalance"])
def test_a_snapshot_stands_for_the_log_before_it(between: str) -> None:
    d = Driver()
    ids = d.stable("one", "two")
    for number in range(20):
        d.commit(f"c{number}", {("t", number % 5): number}, member_id=ids[0], generation_id=2)
        d.commit(f"h{number}", {("u", number % 5): number}, group_id="h")
    start = len(d.log)
    rows = d.shard.snapshot()
    d.log.append(next(rows))  # written bit by bit
    if between == "a commit":
        d.commit("late", {("t", 0): 99, ("new", 0): 1}, member_id=ids[0], generation_id=2)
    elif between == "a deletion":
        d.delete_group("delete", "h")
    elif between == "a rebalance":
        d.leave(ids[1])
        d.join("again", ids[0])
        d.sync("sync again", ids[0], 3, {ids[0]: b"all"})
    d.log += rows
    expected = {group_id: list(group.offsets) for group_id, group in d.shard.groups.items()}
    generation = d.group().generation_id
    del d.log[:start]
    assert len(d.log) < 20
    d.restart()
    assert {group_id: sorted(group.offsets) for group_id, group in d.shard.groups.items()} == {
        group_id: sorted(offsets) for group_id, offsets in expected.items()
    }
    assert d.group().generation_id == generation


def test_a_snapshot_leaves_out_what_is_on_its_way() -> None:
    d = Driver()
    d.commit("first", {("t", 0): 1, ("t", 1): 1})
    d.holds_appends = True
    d.commit("second", {("t", 0): 2})
    assert [decode_key(row.key)[2] for row in d.shard.snapshot()] == [1]  # type: ignore[index]


def test_a_snapshot_is_not_whole_where_what_it_left_out_comes_to_nothing() -> None:
    d = Driver()
    [one] = d.stable("one")
    d.commit("first", {("t", 0): 1, ("t", 1): 1}, member_id=one, generation_id=1)
    d.holds_appends = True
    d.commit("second", {("t", 0): 2}, member_id=one, generation_id=1)
    list(d.shard.snapshot())
    d.commit("third", {("t", 1): 2}, member_id=one, generation_id=1)
    d.store()  # as expected: what was left out is in the log
    d.store(E.COORDINATOR_NOT_AVAILABLE)  # the snapshot has the first commit of this one
    assert d.shard.snapshot_is_whole
    d.commit("fourth", {("t", 0): 3}, member_id=one, generation_id=1)
    list(d.shard.snapshot())
    d.store(E.COORDINATOR_NOT_AVAILABLE)  # the second commit is before the snapshot, and nowhere else
    assert not d.shard.snapshot_is_whole
    d.leave(one)
    assert d.waiting
    list(d.shard.snapshot())
    assert d.shard.snapshot_is_whole
    d.store(E.COORDINATOR_NOT_AVAILABLE)
    assert not d.shard.snapshot_is_whole


def test_what_is_not_known_in_the_log_is_not_taken() -> None:
    d = Driver()
    assert not d.shard.replay(b"\0\3\0\1g", b"?")
    assert list(d.shard.restore()) == []
    assert d.shard.groups == {}


def test_what_cannot_be_read_in_the_log_is_an_error() -> None:
    d = Driver()
    assert d.shard.replay(encode_group_key("g"), b"\0\x09")
    with pytest.raises(Malformed, match="version 9"):
        list(d.shard.restore())
