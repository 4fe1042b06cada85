"""One entry of the metadata log: records, and who wrote them where.

Always true:
- The nonce is of one attempt to append; by it a writer that lost the reply tells its own entry from another's.
- An entry that does not carry the index it was found at, or fails its CRC, is refused.

Layout, big-endian: magic "TLML", format version (1 byte), metadata version (4), index (8), controller epoch (8),
nonce (16), CRC-32C of all other bytes (4), records (MessagePack) to the end.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

from controller.errors import MetadataCorrupt, UnsupportedMetadata
from controller.records import METADATA_VERSION, Record, decode_records

__all__ = ["Entry", "EntryHeader", "decode_entry", "encode_entry"]

_MAGIC: Final = b"TLML"
_FORMAT_VERSION: Final = 1
_HEADER: Final = struct.Struct(">4sBIQQ16s")
_CRC: Final = struct.Struct(">I")
_BODY: Final = _HEADER.size + _CRC.size


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryHeader:
    """Where an entry stands and who wrote it."""

    index: int
    controller_epoch: int
    nonce: bytes
    metadata_version: int = METADATA_VERSION
    """The one in force when it was written, and after it: what a node must understand to read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A decoded entry."""

    header: EntryHeader
    records: Sequence[Record]
    size_bytes: int


def encode_entry(header: EntryHeader, body: bytes) -> tuple[bytes, bytes]:
    """The entry's two parts; `body` is what `encode_records` made."""
    head = _HEADER.pack(
        _MAGIC, _FORMAT_VERSION, header.metadata_version, header.index, header.controller_epoch, header.nonce
    )
    return head + _CRC.pack(crc32c(body, crc32c(head))), body


def decode_entry(data: bytes, index: int, *, where: str) -> Entry:
    """Decode the entry that was found at an index.

    Raises:
        UnsupportedMetadata: a newer version wrote it.
        MetadataCorrupt: it is damaged or does not belong here.
    """
    if len(data) < _BODY or data[:4] != _MAGIC:
        raise MetadataCorrupt(f"{where} is not an entry of the metadata log")
    _, format_version, metadata_version, found_index, controller_epoch, nonce = _HEADER.unpack_from(data)
    if format_version > _FORMAT_VERSION:
        raise UnsupportedMetadata(
            f"{where} has entry format {format_version}, newer than {_FORMAT_VERSION}: upgrade this node"
        )
    body = memoryview(data)[_BODY:]
    if crc32c(body, crc32c(data[: _HEADER.size])) != _CRC.unpack_from(data, _HEADER.size)[0]:
        raise MetadataCorrupt(f"{where} is damaged: its CRC does not match")
    if found_index != index:
        raise MetadataCorrupt(f"{where} carries the index {found_index}")
    if metadata_version > METADATA_VERSION:
        raise UnsupportedMetadata(
            f"{where} has metadata version {metadata_version}, newer than this node's {METADATA_VERSION}: upgrade this node"
        )
    return Entry(
        header=EntryHeader(
            index=index, controller_epoch=controller_epoch, nonce=nonce, metadata_version=metadata_version
        ),
        records=decode_records(body, where=where),
        size_bytes=len(data),
    )
