"""Which broker a consumer reads from, by zones."""

from __future__ import annotations

import pytest

from broker.zones import MAX_REMEMBERED, REST_S, Sent, ZoneNode, Zones, client_rack


@pytest.mark.parametrize(
    ("rack_id", "client_id", "rack"),
    [
        ("a", None, "a"),
        ("a", "app,tidelog_az=b", "a"),
        ("", "tidelog_az=eu-central-1b", "eu-central-1b"),
        ("", "app,tidelog_az=eu-central-1b,team=x", "eu-central-1b"),
        ("", "app tidelog_az=b", "b"),
        ("", "not_tidelog_az=b", ""),
        ("", "tidelog_az=", ""),
        ("", "app", ""),
        ("", None, ""),
    ],
)
def test_a_consumer_names_its_zone(rack_id: str, client_id: str | None, rack: str) -> None:
    assert client_rack(rack_id, client_id) == rack


def zones(racks: dict[int, str]) -> Zones:
    return Zones(ZoneNode(node_id=node_id, rack=rack) for node_id, rack in racks.items())


def test_the_leader_serves_its_own_zone_and_one_broker_each_other() -> None:
    found = zones({1: "a", 2: "a", 3: "b", 4: "b", 5: "c"})
    assert found.nearest("a", leader=2, stream_id=7) == 2
    assert found.nearest("c", leader=2, stream_id=7) == 5
    assert {found.nearest("b", leader=2, stream_id=stream_id) for stream_id in range(10)} == {3, 4}, "they share"
    assert found.replicas(leader=2, stream_id=7) == [2, found.nearest("b", 2, 7), 5]


def test_whoever_is_sent_somewhere_finds_it_among_the_replicas() -> None:
    """Java's consumers ignore a preferred replica that Metadata does not name."""
    found = zones({1: "a", 2: "b", 3: "b", 4: "c", 5: ""})
    for leader in range(1, 6):
        for stream_id in range(5):
            replicas = found.replicas(leader, stream_id)
            assert replicas[0] == leader
            assert len(set(replicas)) == len(replicas)
            for rack in ("a", "b", "c", "unknown", ""):
                assert found.nearest(rack, leader, stream_id) in replicas


def test_without_racks_the_leader_is_all_there_is() -> None:
    assert zones({1: "", 2: ""}).replicas(leader=1, stream_id=3) == [1]
    assert zones({1: "", 2: ""}).nearest("a", leader=1, stream_id=3) == 1


def test_who_came_back_is_not_sent_again_for_a_while() -> None:
    sent = Sent()
    assert sent.may_send("client", 1, now_s=0.0)
    assert not sent.may_send("client", 1, now_s=REST_S - 1)
    assert sent.may_send("client", 2, now_s=1.0), "another partition"
    assert sent.may_send("other", 1, now_s=1.0), "another client"
    assert sent.may_send("client", 1, now_s=REST_S)


def test_what_is_remembered_is_bounded() -> None:
    sent = Sent()
    for number in range(MAX_REMEMBERED + 1):
        assert sent.may_send(str(number), 1, now_s=0.0)
    assert sent.may_send("0", 1, now_s=0.0), "the oldest one was forgotten"
    assert not sent.may_send(str(MAX_REMEMBERED), 1, now_s=0.0)
