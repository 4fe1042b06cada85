"""Parts of large objects, and what the transport gets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3stream.objectstore import Buffer
from s3stream.s3_body import Pieces

SIZES = st.lists(st.integers(0, 40), max_size=30)


def cut(sizes: Sequence[int], *, part: int, kept: int = 0) -> tuple[list[bytes], bytes, bytes]:
    """The parts, the rest, and all of it as it came; each source is overwritten as soon as it was taken."""
    pieces = Pieces(part, kept_bytes=kept)
    whole, parts = b"", []
    for number, size in enumerate(sizes):
        source = bytearray(bytes([number + 1]) * size)
        whole += source
        parts += [_joined(full) for full in pieces.add(memoryview(source))]
        source[:] = bytes(size)
    return parts, _joined(pieces.rest()), whole


def _joined(buffers: Sequence[Buffer]) -> bytes:
    return b"".join(buffers)


@given(sizes=SIZES, part=st.integers(1, 50), kept=st.integers(0, 50))
def test_parts_are_of_one_size_and_add_up(sizes: list[int], part: int, kept: int) -> None:
    parts, rest, whole = cut(sizes, part=part, kept=kept)
    assert b"".join(parts) + rest == whole
    assert {len(full) for full in parts} <= {part}
    assert len(rest) < part + kept
    assert not parts or len(rest) >= kept


@pytest.mark.parametrize("sizes", [[10], [4, 6], [3, 3, 3, 1], [25], []])
def test_the_rest_is_taken_out(sizes: list[int]) -> None:
    pieces = Pieces(100)
    for size in sizes:
        assert list(pieces.add(bytes(size))) == []
    assert len(_joined(pieces.rest())) == sum(sizes)
    assert pieces.rest() == []
    assert list(pieces.add(bytes(99))) == []
    assert _joined(pieces.rest()) == bytes(99)
