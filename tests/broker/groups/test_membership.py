"""How members join, are assigned, stay and leave: traces of the pure machine, and each error that it answers."""

from __future__ import annotations

import pytest

from broker.groups.group import GroupState
from broker.groups.membership import NEW_MEMBER_JOIN_TIMEOUT_MS
from protocol.errors import ErrorCode
from tests.broker.groups.driving import Driver, subscription

E = ErrorCode


def test_a_group_of_one() -> None:
    d = Driver()
    asked = d.join("join?")
    assert (asked.error_code, asked.member_id) == (E.MEMBER_ID_REQUIRED, "client-1")  # KIP-394
    assert d.group().state is GroupState.EMPTY
    joined = d.join("join", "client-1")
    assert (joined.error_code, joined.generation_id, joined.leader) == (0, 1, "client-1")
    assert (joined.protocol_type, joined.protocol_name) == ("consumer", "range")
    assert [member.member_id for member in joined.members] == ["client-1"]
    assert d.group().state is GroupState.COMPLETING_REBALANCE
    synced = d.sync("sync", "client-1", 1, {"client-1": b"all"})
    assert (synced.error_code, synced.assignment, synced.protocol_name) == (0, b"all", "range")
    assert d.group().state is GroupState.STABLE
    assert d.heartbeat("client-1", 1) == 0
    assert d.leave("client-1") == [0]
    assert d.group().state is GroupState.EMPTY
    assert d.group().generation_id == 2


def test_before_version_4_a_member_joins_at_once() -> None:
    d = Driver()
    joined = d.join("join", version=3)
    assert (joined.error_code, joined.member_id, joined.leader) == (0, "client-1", "client-1")


def test_version_0_has_the_session_timeout_only() -> None:
    d = Driver()
    d.join("join", version=0, rebalance_timeout_ms=-1, session_timeout_ms=7_000)
    assert d.group().rebalance_timeout_ms == 7_000


def test_a_second_member_makes_the_first_join_again() -> None:
    d = Driver()
    [one] = d.stable("one")
    assert d.member("two") is None  # waits for the first
    assert d.heartbeat(one, 1) == E.REBALANCE_IN_PROGRESS
    first = d.join("one again", one)
    second = d.replies["two"]
    assert first.generation_id == second.generation_id == 2
    assert first.leader == second.leader == one
    assert len(first.members) == 2
    assert second.members == ()  # only the leader is told
    two = second.member_id
    assert d.sync("sync two", two, 2) is None  # waits for the leader's assignment
    assert d.sync("sync one", one, 2, {one: b"1", two: b"2"}).assignment == b"1"
    assert d.replies["sync two"].assignment == b"2"


def test_members_without_an_assignment_get_an_empty_one() -> None:
    d = Driver()
    one, two = d.stable("one", "two")
    assert d.sync("again", two, d.group().generation_id).assignment == b"two"
    d.join("one again", one)
    d.join("two again", two)
    d.sync("sync one", one, d.group().generation_id, {one: b"everything", "stranger": b"?"})
    assert d.sync("sync two", two, d.group().generation_id).assignment == b""


def test_an_assignment_is_told_when_it_is_durable() -> None:
    d = Driver()
    joined = d.member("join")
    d.holds_appends = True
    assert d.sync("sync", joined.member_id, 1, {joined.member_id: b"all"}) is None
    assert d.group().state is GroupState.COMPLETING_REBALANCE
    d.store()
    assert d.replies["sync"].assignment == b"all"
    assert d.group().state is GroupState.STABLE


def test_an_assignment_that_cannot_be_stored_starts_over() -> None:
    d = Driver()
    joined = d.member("join")
    d.holds_appends = True
    d.sync("sync", joined.member_id, 1, {joined.member_id: b"all"})
    d.store(E.MESSAGE_TOO_LARGE)
    assert d.replies["sync"].error_code == E.UNKNOWN_SERVER_ERROR
    assert d.group().state is GroupState.PREPARING_REBALANCE
    assert d.join("again", joined.member_id).generation_id == 2


def test_a_rebalance_during_the_store_wins() -> None:
    d = Driver()
    one, two = d.stable("one", "two")
    d.join("one again", one)
    d.join("two again", two)
    generation = d.group().generation_id
    d.sync("sync two", two, generation)
    d.holds_appends = True
    d.sync("sync one", one, generation, {one: b"1", two: b"2"})
    assert d.leave(two) == [0]
    assert d.replies["sync one"].error_code == E.REBALANCE_IN_PROGRESS
    d.store()
    assert d.group().state is GroupState.PREPARING_REBALANCE
    assert d.group().members[one].assignment == b""


# ---- the initial delay ----------------------------------------------------------------------------------------------


def test_an_empty_group_waits_for_more_members() -> None:
    d = Driver(initial_rebalance_delay_ms=3_000)
    assert d.member("one") is None
    d.after(2_000)
    assert d.member("two") is None
    d.after(1_000)
    assert "one" not in d.replies  # somebody came: once more
    d.after(3_000)
    assert d.replies["one"].generation_id == d.replies["two"].generation_id == 1
    assert len(d.replies["one"].members) == 2


def test_the_initial_delay_ends_with_the_rebalance_timeout() -> None:
    d = Driver(initial_rebalance_delay_ms=3_000)
    for number in range(4):
        d.member(str(number), rebalance_timeout_ms=7_000)
        d.after(2_000)
    assert d.replies["0"].generation_id == 1


# ---- who does not come ----------------------------------------------------------------------------------------------


def test_who_does_not_join_again_in_time_is_out() -> None:
    d = Driver()
    one, _two = d.stable("one", "two", session_timeout_ms=60_000)
    d.join("one again", one, session_timeout_ms=60_000)
    d.after(29_999)
    assert "one again" not in d.replies
    d.after(1)
    assert [member.member_id for member in d.replies["one again"].members] == [one]


def test_the_next_one_leads_where_the_leader_does_not_join_again() -> None:
    d = Driver()
    one, two = d.stable("one", "two", session_timeout_ms=60_000)
    d.member("three", session_timeout_ms=60_000)
    d.join("two again", two, session_timeout_ms=60_000)
    d.after(30_000)
    assert d.replies["two again"].leader == two
    assert d.heartbeat(one, d.group().generation_id) == E.UNKNOWN_MEMBER_ID


def test_a_silent_member_is_out_after_its_session() -> None:
    d = Driver()
    one, two = d.stable("one", "two")
    d.after(9_999)
    assert d.heartbeat(one, d.group().generation_id) == 0
    d.after(1)
    assert d.heartbeat(two, d.group().generation_id) == E.UNKNOWN_MEMBER_ID
    assert d.heartbeat(one, d.group().generation_id) == E.REBALANCE_IN_PROGRESS


def test_whoever_waits_for_an_answer_is_alive() -> None:
    d = Driver()
    one, two = d.stable("one", "two", session_timeout_ms=2_000)
    d.join("one again", one, session_timeout_ms=2_000)
    d.after(1_000)
    d.heartbeat(two, d.group().generation_id)
    d.after(1_500)
    assert one in d.group().members


def test_a_first_join_is_given_up_after_five_minutes() -> None:
    d = Driver()
    d.stable("one", session_timeout_ms=60_000, rebalance_timeout_ms=10 * NEW_MEMBER_JOIN_TIMEOUT_MS)
    d.member("two", session_timeout_ms=60_000)
    [one] = [member for member in d.group().members if member != "client-2"][:1]
    for _ in range(NEW_MEMBER_JOIN_TIMEOUT_MS // 30_000):
        d.heartbeat(one, 1)
        d.after(30_000)
    answer = d.replies["two"]
    assert (answer.error_code, answer.member_id) == (E.UNKNOWN_MEMBER_ID, "")


def test_whoever_was_given_an_id_has_a_session_to_join() -> None:
    d = Driver()
    [one] = d.stable("one")
    d.join("two?", session_timeout_ms=5_000)
    assert d.join("one again", one, session_timeout_ms=60_000) is None  # waits for the second, which was announced
    d.after(5_000)
    assert d.replies["one again"].generation_id == 2
    assert d.join("two", "client-2").error_code == E.UNKNOWN_MEMBER_ID


def test_whoever_never_asks_for_its_assignment_is_out() -> None:
    d = Driver()
    one, two = d.stable("one", "two", session_timeout_ms=60_000)
    d.join("one again", one, session_timeout_ms=60_000)
    d.join("two again", two, session_timeout_ms=60_000)
    d.sync("sync one", one, d.group().generation_id, {one: b"1", two: b"2"})
    for _ in range(3):
        d.after(10_000)
        d.heartbeat(one, d.group().generation_id)
        d.heartbeat(two, d.group().generation_id)
    assert list(d.group().members) == [one]
    assert d.group().state is GroupState.PREPARING_REBALANCE


# ---- what a JoinGroup of a known member means ------------------------------------------------------------------------


def test_a_follower_that_joins_again_with_the_same_changes_nothing() -> None:
    d = Driver()
    _one, two = d.stable("one", "two")
    generation = d.group().generation_id
    again = d.join("two once more", two)
    assert (again.generation_id, again.members) == (generation, ())
    assert d.group().state is GroupState.STABLE


@pytest.mark.parametrize("who", [0, 1])
def test_another_subscription_or_the_leader_starts_a_rebalance(who: int) -> None:
    d = Driver()
    ids = d.stable("one", "two")
    protocols = None if who == 0 else {"range": subscription("t", "u")}
    assert d.join("again", ids[who], protocols=protocols) is None
    assert d.group().state is GroupState.PREPARING_REBALANCE


def test_a_lost_answer_is_given_again() -> None:
    d = Driver()
    joined = d.member("join")
    again = d.join("join again", joined.member_id)
    assert (again.generation_id, len(again.members)) == (1, 1)
    assert d.group().state is GroupState.COMPLETING_REBALANCE


def test_of_two_joins_of_one_member_the_first_is_told_to_try_again() -> None:
    d = Driver()
    one, _ = d.stable("one", "two")
    assert d.join("first", one) is None
    assert d.join("second", one) is None
    assert d.replies["first"].error_code == E.REBALANCE_IN_PROGRESS


def test_the_protocol_is_one_that_all_support_and_most_prefer() -> None:
    d = Driver(initial_rebalance_delay_ms=1_000)
    d.member("one", protocols={"range": b"1", "sticky": b"s"})
    d.member("two", protocols={"sticky": b"s", "range": b"2"})
    d.member("three", protocols={"cooperative": b"c", "sticky": b"s", "range": b"3"})
    d.after(3_000)
    assert d.replies["one"].protocol_name == "sticky"
    assert d.member("four", protocols={"range": b"4"}) is None  # all have it
    assert d.join("five?", protocols={"other": b""}).error_code == E.INCONSISTENT_GROUP_PROTOCOL
    assert d.join("six?", protocol_type="connect").error_code == E.INCONSISTENT_GROUP_PROTOCOL


def test_a_protocol_is_needed() -> None:
    assert Driver().join("none", protocols={}).error_code == E.INCONSISTENT_GROUP_PROTOCOL
    assert Driver().join("none", protocol_type="").error_code == E.INCONSISTENT_GROUP_PROTOCOL


@pytest.mark.parametrize("session_timeout_ms", [999, 60_001])
def test_a_session_timeout_has_bounds(session_timeout_ms: int) -> None:
    d = Driver()
    assert d.join("join", session_timeout_ms=session_timeout_ms).error_code == E.INVALID_SESSION_TIMEOUT
    assert d.shard.groups == {}


def test_a_cooperative_rebalance_is_two_generations() -> None:
    d = Driver()
    one, two = "client-1", "client-2"
    protocols = {"cooperative-sticky": subscription("t")}
    d.member("one", protocols=protocols)
    d.sync("sync 1", one, 1, {one: b"p0 p1"})
    d.member("two", protocols=protocols)
    d.join("one, keeping all", one, protocols={"cooperative-sticky": subscription("t") + b"owns p0 p1"})
    d.sync("sync 2", one, 2, {one: b"p0", two: b""})  # p1 is to be given up first
    assert d.sync("sync 2 two", two, 2).assignment == b""
    d.join("one, keeping p0", one, protocols={"cooperative-sticky": subscription("t") + b"owns p0"})
    d.join("two again", two, protocols=protocols)
    d.sync("sync 3", one, 3, {one: b"p0", two: b"p1"})
    assert d.sync("sync 3 two", two, 3).assignment == b"p1"


# ---- errors -----------------------------------------------------------------------------------------------------------


def test_strangers_are_told_so() -> None:
    d = Driver()
    assert d.join("join", "stranger").error_code == E.UNKNOWN_MEMBER_ID
    assert d.sync("sync", "stranger", 1).error_code == E.UNKNOWN_MEMBER_ID
    assert d.heartbeat("stranger", 1) == E.UNKNOWN_MEMBER_ID
    assert d.leave("stranger") == [E.UNKNOWN_MEMBER_ID]
    assert d.leave("stranger", version=2) == [E.UNKNOWN_MEMBER_ID]
    [one] = d.stable("one")
    assert d.join("join 2", "stranger").error_code == E.UNKNOWN_MEMBER_ID
    assert d.sync("sync 2", "stranger", 1).error_code == E.UNKNOWN_MEMBER_ID
    assert d.heartbeat("stranger", 1) == E.UNKNOWN_MEMBER_ID
    assert d.leave("stranger", one) == [E.UNKNOWN_MEMBER_ID, 0]


def test_an_earlier_generation_is_over() -> None:
    d = Driver()
    one, _ = d.stable("one", "two")
    assert d.heartbeat(one, 1) == E.ILLEGAL_GENERATION
    assert d.sync("sync", one, 1).error_code == E.ILLEGAL_GENERATION


def test_no_assignment_while_members_join() -> None:
    d = Driver()
    [one] = d.stable("one")
    d.member("two")
    assert d.sync("sync", one, 1).error_code == E.REBALANCE_IN_PROGRESS


@pytest.mark.parametrize("wrong", [{"protocol_type": "connect"}, {"protocol_name": "sticky"}])
def test_a_sync_names_the_protocol_of_the_join(wrong: dict[str, str]) -> None:
    d = Driver()
    joined = d.member("join")
    assert d.sync("sync", joined.member_id, 1, **wrong).error_code == E.INCONSISTENT_GROUP_PROTOCOL


def test_a_group_has_a_largest_size() -> None:
    d = Driver(max_size=2)
    one, two = d.stable("one", "two")
    refused = d.join("three")
    assert (refused.error_code, refused.member_id) == (E.GROUP_MAX_SIZE_REACHED, "")
    assert d.leave(two) == [0]
    d.join("one again", one)
    assert d.join("three?").error_code == E.MEMBER_ID_REQUIRED


def test_a_group_that_is_too_large_after_a_restart_sheds_members() -> None:
    d = Driver()
    one, two, three = d.stable("one", "two", "three")
    d.limits = type(d.limits)(
        initial_rebalance_delay_ms=0, min_session_timeout_ms=1_000, max_session_timeout_ms=60_000, max_size=2
    )
    d.restart()
    assert d.group().state is GroupState.PREPARING_REBALANCE
    d.join("one again", one)
    d.join("three again", three)
    assert d.join("two again", two).error_code == E.GROUP_MAX_SIZE_REACHED
    assert d.replies["one again"].generation_id == d.replies["three again"].generation_id


# ---- static members (KIP-345) ------------------------------------------------------------------------------------------


def static(d: Driver) -> tuple[str, str]:
    """A stable group of two static members, "a" leading, with generation 2."""
    a = d.join("a", instance_id="a").member_id
    assert d.join("b", instance_id="b") is None
    d.join("a with b", a, instance_id="a")
    b = d.replies["b"].member_id
    d.sync("sync b", b, 2, instance_id="b")
    d.sync("sync a", a, 2, {a: b"A", b: b"B"}, instance_id="a")
    return a, b


def test_a_static_member_needs_no_second_join() -> None:
    d = Driver()
    a, b = static(d)
    assert (a, b) == ("a-1", "b-2")
    assert d.replies["sync b"].assignment == b"B"


def test_a_static_member_comes_back_without_a_rebalance() -> None:
    d = Driver()
    a, b = static(d)
    d.holds_appends = True
    assert d.join("b is back", instance_id="b") is None  # not before its new id is durable
    d.store()
    back = d.replies["b is back"]
    assert (back.generation_id, back.leader, back.skip_assignment) == (2, a, False)
    assert back.member_id not in (a, b)
    assert d.group().state is GroupState.STABLE
    assert d.sync("sync b again", back.member_id, 2, instance_id="b").assignment == b"B"
    # who had the place is fenced, in everything that it does
    assert d.heartbeat(b, 2, instance_id="b") == E.FENCED_INSTANCE_ID
    assert d.sync("old b", b, 2, instance_id="b").error_code == E.FENCED_INSTANCE_ID
    assert d.join("old b joins", b, instance_id="b").error_code == E.FENCED_INSTANCE_ID
    assert d.commit("old b commits", {("t", 0): 1}, member_id=b, generation_id=2, instance_id="b") == [
        E.FENCED_INSTANCE_ID
    ]
    assert d.heartbeat(a, 2, instance_id="a") == 0


@pytest.mark.parametrize("version", [8, 9])
def test_a_static_leader_that_comes_back_does_not_assign(version: int) -> None:
    d = Driver()
    a, _ = static(d)
    back = d.join("a is back", instance_id="a", version=version)
    if version == 9:  # KIP-814: it leads, and knows that there is nothing to do
        assert (back.leader, back.skip_assignment, len(back.members)) == (back.member_id, True, 2)
    else:  # it takes somebody else for the leader
        assert (back.leader, back.skip_assignment, back.members) == (a, False, ())
    assert d.sync("sync", back.member_id, 2, instance_id="a").assignment == b"A"
    assert d.group().leader == back.member_id


def test_a_static_member_that_is_waited_for_fences_the_one_that_waits() -> None:
    d = Driver()
    _a, b = static(d)
    d.join("c", instance_id="c")
    assert d.join("b again", b, instance_id="b") is None
    assert d.join("b, restarted", instance_id="b") is None
    assert d.replies["b again"].error_code == E.FENCED_INSTANCE_ID


def test_a_static_member_may_be_away_for_its_session() -> None:
    d = Driver()
    a, b = static(d)
    d.member("dynamic")
    d.join("a again", a, instance_id="a")
    d.after(9_999)
    assert "a again" not in d.replies
    d.after(1)
    assert b not in d.group().members  # its session is over
    assert d.replies["a again"].error_code == 0


def test_static_members_without_patience_are_waited_for_all_the_same() -> None:
    d = Driver()
    a = d.join("a", instance_id="a", rebalance_timeout_ms=0).member_id
    d.sync("sync", a, 1, {a: b"A"}, instance_id="a")
    asked = d.join("dynamic?", rebalance_timeout_ms=0)
    assert d.join("dynamic", asked.member_id, rebalance_timeout_ms=0) is None
    d.leave(asked.member_id)
    for _ in range(9):
        d.after(1_000)  # its session: nobody else is left who could lead
        assert d.group().state is GroupState.PREPARING_REBALANCE
    d.after(1_000)
    assert d.group().state is GroupState.EMPTY


def test_a_static_member_whose_assignment_is_under_way_starts_over() -> None:
    d = Driver()
    a, b = static(d)
    d.join("a once more", a, instance_id="a")
    d.join("b once more", b, instance_id="b")
    assert d.group().state is GroupState.COMPLETING_REBALANCE
    assert d.join("b, restarted", instance_id="b") is None
    assert d.group().state is GroupState.PREPARING_REBALANCE


def test_a_static_member_is_removed_by_name() -> None:
    d = Driver()
    _a, b = static(d)
    assert d.leave(instance_ids=["b", "nobody"]) == [0, E.UNKNOWN_MEMBER_ID]
    assert b not in d.group().members
    assert d.heartbeat(b, 2, instance_id="b") == E.UNKNOWN_MEMBER_ID


def test_an_instance_that_never_joined_is_unknown() -> None:
    d = Driver()
    [one] = d.stable("one")
    assert d.heartbeat(one, 1, instance_id="x") == E.UNKNOWN_MEMBER_ID
    assert d.join("join", one, instance_id="x").error_code == E.UNKNOWN_MEMBER_ID


# ---- leaving ----------------------------------------------------------------------------------------------------------


def test_who_leaves_makes_the_others_join_again() -> None:
    d = Driver()
    one, two = d.stable("one", "two")
    assert d.leave(one) == [0]
    assert d.group().leader == two
    assert d.heartbeat(two, d.group().generation_id) == E.REBALANCE_IN_PROGRESS
    assert d.join("two again", two).leader == two


def test_who_leaves_while_it_joins_is_answered() -> None:
    d = Driver()
    one, two = d.stable("one", "two")
    d.join("two again", two, protocols={"range": subscription("u")})
    d.leave(two)
    assert d.replies["two again"].error_code == E.UNKNOWN_MEMBER_ID
    assert d.join("one again", one).error_code == 0


def test_who_was_given_an_id_may_leave() -> None:
    d = Driver()
    [one] = d.stable("one")
    two = d.join("two?").member_id
    assert d.join("one again", one) is None
    assert d.leave(two) == [0]
    assert d.replies["one again"].generation_id == 2


# ---- restarts ---------------------------------------------------------------------------------------------------------


def test_a_stable_group_goes_on_after_a_restart() -> None:
    d = Driver()
    one, two = d.stable("one", "two")
    generation = d.group().generation_id
    d.restart()
    assert d.group().state is GroupState.STABLE
    assert d.group().leader == one
    assert d.heartbeat(one, generation) == 0
    assert d.sync("sync", two, generation).assignment == b"two"
    d.after(10_000)
    assert d.group().members == {}  # whoever does not come back is out


def test_a_rebalance_that_a_crash_interrupts_starts_over() -> None:
    d = Driver()
    one, two = d.stable("one", "two")
    generation = d.group().generation_id
    d.join("one again", one)
    d.restart()
    assert d.heartbeat(two, generation) == 0  # as before the rebalance
    assert d.join("one once more", one) is None
    assert d.join("two again", two).generation_id == generation + 1


def test_everybody_who_waits_is_told_when_the_partition_goes() -> None:
    d = Driver()
    one, _two = d.stable("one", "two")
    d.join("one again", one)
    [effect] = d.shard.close(E.NOT_COORDINATOR)
    assert (effect.token, effect.response.error_code) == ("one again", E.NOT_COORDINATOR)
