"""Who is suspected, trusted again and taken for dead, and when: the pure part of detection."""

from __future__ import annotations

from dataclasses import replace

from controller.config import ControllerSettings
from controller.detection import Judged, Verdict, Watch
from controller.image import Node
from controller.tables import NodeStatus

SETTINGS = ControllerSettings(session_timeout_ms=2_000, lease_ms=3_000, lease_margin_ms=200)


def node(node_id: int, node_epoch: int = 1, status: NodeStatus = NodeStatus.ALIVE, lease_ms: int = 3_000) -> Node:
    return Node(
        node_id=node_id,
        node_epoch=node_epoch,
        wal_id=f"w{node_id}",
        address="",
        rack="",
        lease_ms=lease_ms,
        controller_address="",
        status=status,
    )


def watch_of_node_1(now_s: float) -> Watch:
    watch = Watch(1, SETTINGS)
    watch.begin(now_s)
    return watch


def test_a_silent_node_is_suspected_and_dead_when_its_lease_has_surely_run_out() -> None:
    watch = watch_of_node_1(100.0)
    assert list(watch.judge([node(1), node(2)], 100.0)) == []
    watch.heard(2, 101.0)
    assert list(watch.judge([node(1), node(2)], 102.9)) == []
    assert list(watch.judge([node(1), node(2)], 103.0)) == [Judged(Verdict.SUSPECT, 2, 1)]
    suspect = node(2, status=NodeStatus.SUSPECT)
    assert list(watch.judge([suspect], 103.1)) == [], "the suspicion is seen to be committed"
    assert list(watch.judge([suspect], 106.2)) == []
    assert list(watch.judge([suspect], 106.4)) == [Judged(Verdict.DEAD, 2, 1)]
    assert list(watch.judge([replace(suspect, status=NodeStatus.DEAD)], 200.0)) == []


def test_a_node_with_a_longer_lease_is_waited_for() -> None:
    watch = watch_of_node_1(100.0)
    suspect = node(2, status=NodeStatus.SUSPECT, lease_ms=9_000)
    list(watch.judge([suspect], 103.0))
    assert list(watch.judge([suspect], 112.1)) == []
    assert list(watch.judge([suspect], 112.3)) == [Judged(Verdict.DEAD, 2, 1)]


def test_a_sign_of_life_takes_the_suspicion_back_and_the_wait_begins_anew() -> None:
    watch = watch_of_node_1(100.0)
    suspect = node(2, status=NodeStatus.SUSPECT)
    assert list(watch.judge([suspect], 105.0)) == []
    watch.heard(2, 107.0)
    assert list(watch.judge([suspect], 107.1)) == [Judged(Verdict.TRUST, 2, 1)]
    assert list(watch.judge([node(2)], 107.2)) == []
    assert list(watch.judge([node(2)], 109.1)) == [Judged(Verdict.SUSPECT, 2, 1)]
    assert list(watch.judge([suspect], 109.2)) == []
    assert list(watch.judge([suspect], 112.3)) == []
    assert list(watch.judge([suspect], 112.5)) == [Judged(Verdict.DEAD, 2, 1)]


def test_a_new_leader_waits_a_whole_detection_period_before_it_counts() -> None:
    watch = watch_of_node_1(100.0)
    suspect = node(2, status=NodeStatus.SUSPECT)
    assert list(watch.judge([suspect], 100.1)) == []
    assert list(watch.judge([suspect], 105.1)) == [], "2 s, then 3.2 s"
    assert list(watch.judge([suspect], 105.3)) == [Judged(Verdict.DEAD, 2, 1)]
    watch.begin(200.0)
    assert list(watch.judge([suspect], 200.1)) == []
    assert list(watch.judge([suspect], 205.1)) == []
    assert list(watch.judge([suspect], 205.3)) == [Judged(Verdict.DEAD, 2, 1)]


def test_a_leader_that_was_replaced_since_it_is_silent_gets_no_more_time() -> None:
    watch = Watch(1, SETTINGS)
    watch.heard(2, 98.0)
    watch.heard(3, 98.0)
    watch.begin(100.0, replaced=2)
    assert list(watch.judge([node(2), node(3)], 100.1)) == [Judged(Verdict.SUSPECT, 2, 1)]
    suspect = node(2, status=NodeStatus.SUSPECT)
    watch.heard(3, 100.2)
    assert list(watch.judge([suspect, node(3)], 100.2)) == []
    watch.heard(3, 103.0)
    assert list(watch.judge([suspect, node(3)], 103.3)) == []
    assert list(watch.judge([suspect, node(3)], 103.5)) == [Judged(Verdict.DEAD, 2, 1)]


def test_a_leader_that_was_replaced_and_shows_life_is_not_suspected() -> None:
    watch = Watch(1, SETTINGS)
    watch.heard(2, 99.8)
    watch.begin(100.0, replaced=2)
    assert list(watch.judge([node(2)], 100.1)) == []
    watch.heard(2, 100.3)
    assert list(watch.judge([node(2)], 102.2)) == []
    assert list(watch.judge([node(2)], 102.4)) == [Judged(Verdict.SUSPECT, 2, 1)]


def test_time_in_which_the_leader_itself_stood_still_is_held_against_nobody() -> None:
    watch = watch_of_node_1(100.0)
    list(watch.judge([node(2)], 100.0))
    watch.be_patient(500.0)
    assert list(watch.judge([node(2)], 501.9)) == []
    assert list(watch.judge([node(2)], 502.1)) == [Judged(Verdict.SUSPECT, 2, 1)]


def test_the_leader_trusts_itself_and_who_takes_no_lease() -> None:
    watch = watch_of_node_1(100.0)
    alone = node(3, lease_ms=0)
    assert list(watch.judge([node(1, status=NodeStatus.SUSPECT), alone], 100.1)) == [Judged(Verdict.TRUST, 1, 1)]
    assert list(watch.judge([node(1), alone], 1_000.0)) == []


def test_a_leader_that_hears_nobody_gives_the_others_time_to_replace_it() -> None:
    watch = watch_of_node_1(100.0)
    nodes = [node(1), node(2), node(3)]
    list(watch.judge(nodes, 100.0))
    watch.heard(3, 101.0)
    assert list(watch.judge(nodes, 102.5)) == [], "node 2 said its last word earlier, and so may have node 3"
    assert list(watch.judge(nodes, 104.9)) == []
    watch.heard(3, 104.95)
    assert list(watch.judge(nodes, 105.0)) == [Judged(Verdict.SUSPECT, 2, 1)]
    assert list(watch.judge(nodes, 108.9)) == []
    assert list(watch.judge(nodes, 109.0)) == [Judged(Verdict.SUSPECT, 2, 1), Judged(Verdict.SUSPECT, 3, 1)]


def test_a_registration_is_a_sign_of_life() -> None:
    watch = watch_of_node_1(100.0)
    list(watch.judge([node(2)], 100.0))
    assert list(watch.judge([node(2, node_epoch=7)], 110.0)) == []
    assert list(watch.judge([node(2, node_epoch=7)], 112.1)) == [Judged(Verdict.SUSPECT, 2, 7)]


def test_a_version_is_known_to_all_when_each_said_so_lately() -> None:
    watch = watch_of_node_1(100.0)
    nodes = {1: node(1), 2: node(2)}
    assert watch.all_know({1: node(1)}, 4, 100.0), "the leader itself"
    assert not watch.all_know(nodes, 4, 100.0)
    watch.heard(2, 100.5, 3)
    assert not watch.all_know(nodes, 4, 100.6)
    watch.heard(2, 101.0, 4)
    watch.heard(2, 101.5)
    assert watch.all_know(nodes, 4, 101.6)
    assert not watch.all_know(nodes, 4, 110.0), "it may have been taken back to an older version since"
