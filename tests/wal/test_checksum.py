"""CRCs of concatenations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal.checksum import combine_crc32c, crc32c


def test_the_check_value_of_the_polynomial() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4 and every catalogue of CRCs


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_a_crc_of_parts_is_that_of_the_whole(parts: list[bytes]) -> None:
    combined = 0
    for part in parts:
        combined = combine_crc32c(combined, crc32c(part), len(part))
    assert combined == crc32c(b"".join(parts))


@pytest.mark.parametrize("size", [1, 3, 4, 255, 256, (1 << 16) - 1, 1 << 16, (1 << 20) + 12345, (1 << 24) + 77])
def test_large_parts(size: int) -> None:
    first, second = b"head", bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert combine_crc32c(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


def test_a_size_is_not_negative() -> None:
    with pytest.raises(ValueError, match="-1"):
        combine_crc32c(1, 2, -1)
