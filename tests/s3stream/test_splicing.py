"""What is copied and what is rewritten: parts that S3 takes, every block once, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from s3stream.metadata import ObjectId, StreamId
from s3stream.object_format import IndexEntry
from s3stream.objectstore import LEAST_COPY_BYTES
from s3stream.splicing import MAX_COPY_BYTES, Copy, Rewrite, Splicer
from wal.checksum import crc32c

KIB, MIB = 1 << 10, 1 << 20
BLOCK_BYTES = 512 * KIB


def blocks(*sizes: int, position: int = 0) -> list[IndexEntry]:
    """Neighbouring blocks of one stream, one offset each."""
    found: list[IndexEntry] = []
    for number, size in enumerate(sizes):
        found.append(IndexEntry(1, 1, StreamId(1), number, number + 1, 0, position, size, 1, number))
        position += size
    return found


def told(steps: list[Copy | Rewrite]) -> list[tuple[str, int]]:
    return [(type(step).__name__, len(step.blocks)) for step in steps]


def test_a_large_run_is_copied() -> None:
    assert told([*Splicer(BLOCK_BYTES, copies=True).steps(ObjectId(1), blocks(*[BLOCK_BYTES] * 40))]) == [("Copy", 40)]
    assert told([*Splicer(BLOCK_BYTES, copies=False).steps(ObjectId(1), blocks(*[BLOCK_BYTES] * 40))]) == [
        ("Rewrite", 40)
    ]


def test_a_short_run_and_one_of_small_blocks_are_rewritten() -> None:
    splicer = Splicer(BLOCK_BYTES, copies=True)
    assert told([*splicer.steps(ObjectId(1), blocks(*[BLOCK_BYTES] * 9))]) == [("Rewrite", 9)]
    assert told([*splicer.steps(ObjectId(1), blocks(*[10 * KIB] * 4000))]) == [("Rewrite", 4000)]
    assert told([*splicer.steps(ObjectId(1), [])]) == []


def test_what_lies_before_a_copy_is_filled_up_to_a_part() -> None:
    splicer = Splicer(BLOCK_BYTES, copies=True)
    splicer.wrote(MIB)  # such as a state
    assert told([*splicer.steps(ObjectId(1), blocks(*[BLOCK_BYTES] * 40))]) == [("Rewrite", 8), ("Copy", 32)]
    assert told([*splicer.steps(ObjectId(2), blocks(*[BLOCK_BYTES] * 40))]) == [("Copy", 40)]


def test_a_copy_knows_its_bytes_and_their_crc() -> None:
    data = bytes(range(256)) * 100
    one, two = (IndexEntry(1, 1, StreamId(1), n, n + 1, 0, 50 + at, size, 1, crc32c(data[at : at + size]))
                for n, (at, size) in enumerate([(0, 1000), (1000, 24_600)]))  # fmt: skip
    copy = Copy(object_id=ObjectId(1), blocks=[one, two])
    assert (copy.start, copy.end, copy.crc32c) == (50, 50 + 25_600, crc32c(data))


run = st.tuples(
    st.lists(st.sampled_from([1, 10 * KIB, 200 * KIB, BLOCK_BYTES, 3 * MIB, 100 * MIB]), max_size=60),
    st.integers(0, 8 * MIB),
    st.sampled_from([0, 0, 100, 3 * MIB]),
)


@given(st.lists(run, min_size=1, max_size=8))
def test_any_object_is_made_of_parts_that_a_store_takes(runs: list[tuple[list[int], int, int]]) -> None:
    splicer = Splicer(BLOCK_BYTES, copies=True)
    parts: list[tuple[bool, int]] = []  # whether it is copied, and bytes
    for number, (sizes, position, state_bytes) in enumerate(runs):
        given_blocks = blocks(*sizes, position=position)
        steps = [*splicer.steps(ObjectId(number), given_blocks)]
        assert [block for step in steps for block in step.blocks] == given_blocks
        for step in steps:
            assert step.object_id == number
            parts.append((isinstance(step, Copy), sum(block.size_bytes for block in step.blocks)))
        splicer.wrote(state_bytes)
        parts.append((False, state_bytes))
    written = 0
    for is_copy, size in parts:
        if is_copy:
            assert written == 0 or written >= LEAST_COPY_BYTES
            assert LEAST_COPY_BYTES <= size <= MAX_COPY_BYTES + 2 * 100 * MIB  # more only for blocks beyond measure
            written = 0
        else:
            written += size
