"""The balancer: what has to go goes, the rest is made even and then left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from controller.balancer import NodePlace, plan_moves
from s3stream.metadata import StreamId


def place(
    node_id: int,
    open_streams: Sequence[int] = (),
    closed: Sequence[int] = (),
    *,
    lives: bool = True,
    leaves: bool = False,
) -> NodePlace:
    return NodePlace(
        node_id=node_id,
        lives=lives,
        leaves=leaves,
        open_streams=[*map(StreamId, open_streams)],
        closed_streams=[*map(StreamId, closed)],
    )


def carried_out(places: Sequence[NodePlace], moves: dict[StreamId, int]) -> list[NodePlace]:
    """The nodes afterwards; what was moved is open."""
    return [
        NodePlace(
            node_id=each.node_id,
            lives=each.lives,
            leaves=each.leaves,
            open_streams=[stream for stream in each.open_streams if stream not in moves]
            + [stream for stream, node_id in moves.items() if node_id == each.node_id],
            closed_streams=[stream for stream in each.closed_streams if stream not in moves],
        )
        for each in places
    ]


def test_a_node_that_joins_gets_its_share() -> None:
    moves = plan_moves([place(1, range(6)), place(2, range(6, 12)), place(3)], max_moves=100)
    assert Counter(moves.values()) == {3: 4}
    assert len([stream for stream in moves if stream < 6]) == 2


def test_a_node_that_leaves_gives_everything_away() -> None:
    moves = plan_moves([place(1, range(5), leaves=True), place(2, [10, 11, 12]), place(3, [20])], max_moves=1)
    assert set(moves) == set(range(5)), "however few may move for evenness"
    assert Counter(moves.values()) == {2: 1, 3: 4} or Counter(moves.values()) == {2: 2, 3: 3}


def test_open_partitions_of_a_node_that_is_away_stay() -> None:
    moves = plan_moves([place(1, [0, 1], [2, 3], lives=False), place(2, [10])], max_moves=100)
    assert moves == {2: 2, 3: 2}, "what is closed is wholly in objects"


def test_where_nobody_takes_nothing_moves() -> None:
    assert plan_moves([place(1, [0, 1], leaves=True), place(2, [5], lives=False)], max_moves=100) == {}
    assert plan_moves([], max_moves=100) == {}


def test_small_differences_are_left_alone() -> None:
    assert plan_moves([place(1, range(12)), place(2, range(20, 30))], max_moves=100) == {}
    assert len(plan_moves([place(1, range(14)), place(2, range(20, 30))], max_moves=100)) == 2


def test_moves_for_evenness_are_bounded() -> None:
    assert len(plan_moves([place(1, range(1_000)), place(2)], max_moves=7)) == 7


places = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 4), st.booleans(), st.booleans()), min_size=1, max_size=6
).map(
    lambda nodes: [
        place(
            number,
            range(number * 100, number * 100 + open_count),
            range(number * 100 + 50, number * 100 + 50 + closed_count),
            lives=lives,
            leaves=leaves,
        )
        for number, (open_count, closed_count, lives, leaves) in enumerate(nodes)
    ]
)


@given(places)
def test_whatever_there_is_a_plan_is_right_and_ends(nodes: list[NodePlace]) -> None:
    owner = {stream: each for each in nodes for stream in (*each.open_streams, *each.closed_streams)}
    for _ in range(3):
        moves = dict(plan_moves(nodes, max_moves=1_000))
        by_id = {each.node_id: each for each in nodes}
        for stream, node_id in moves.items():
            assert by_id[node_id].takes
            assert node_id != owner[stream].node_id
            assert owner[stream].lives or stream in owner[stream].closed_streams
        nodes = carried_out(nodes, moves)
        owner = {stream: each for each in nodes for stream in (*each.open_streams, *each.closed_streams)}
    assert moves == {}, "it comes to an end"
    takers = [each for each in nodes if each.takes]
    if takers:
        for each in nodes:
            assert not each.leaves or not each.lives or not each.open_streams
        counts = [len(each.open_streams) + len(each.closed_streams) for each in takers]
        assert max(counts) - min(counts) <= max(2, sum(counts) / len(counts) * 0.2)
