"""CRC-32C as S3 writes it, and whether a store has confirmed a large object. Pure."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

from s3stream.objectstore import Buffer
from wal.checksum import combine_crc32c, crc32c

__all__ = ["UploadedPart", "crc_of", "is_confirmed", "written_crc"]


class UploadedPart(NamedTuple):
    """A part of a large object that the store has."""

    named: dict[str, Any]
    """As the completion names it."""
    size_bytes: int
    is_confirmed: bool
    """The store told the CRC of what it has, and it is ours."""


def crc_of(parts: Sequence[Buffer]) -> int:
    """Of all of them, one after the other."""
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    return crc


def written_crc(crc: int) -> str:
    """As it stands in a header."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def is_confirmed(told: str | None, parts: Sequence[UploadedPart]) -> bool:
    """Whether what a store tells of an object is what its parts come to: the CRC of their CRCs, as S3 does it for parts, or of all
    bytes. A store that tells nothing, or something else, confirms nothing."""
    if told is None or not all(part.is_confirmed for part in parts):
        return False
    crcs = [base64.b64decode(part.named["ChecksumCRC32C"]) for part in parts]
    whole = 0
    for part, crc in zip(parts, crcs, strict=True):
        whole = combine_crc32c(whole, int.from_bytes(crc, "big"), part.size_bytes)
    return told.partition("-")[0] in (written_crc(crc32c(b"".join(crcs))), written_crc(whole))
