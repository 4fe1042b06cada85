"""The codecs of record batches.

Always true here: `decompress` never produces more than the caller's cap, however small the input that asks for it
(`OutputTooLarge`), and raises nothing but `Malformed` whatever the bytes.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum

import cramjam
import lz4.frame

from protocol.errors import Malformed, OutputTooLarge
from protocol.types import Buffer

__all__ = ["Codec", "compress", "decompress"]

_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_XERIAL_HEADER = _XERIAL_MAGIC + struct.pack("!ii", 1, 1)
"""The framing of the Java library snappy-java, which Kafka's producers use; others send one bare block."""
_XERIAL_BLOCK_BYTES = 32 * 1024
_INT32 = struct.Struct("!i")

_MAX_GZIP_MEMBERS = 64
"""Clients write one. Each takes a state of 40 KB and a copy of what follows it, so that a megabyte of empty ones would take
seconds."""

_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_SKIPPABLE_MAGIC = 0x184D2A50
_ZSTD_BLOCK_BYTES = 128 * 1024
"""Largest output of one block (RFC 8878)."""


class Codec(IntEnum):
    """Codec numbers, as in the low three bits of a batch's attributes."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


def compress(codec: Codec, data: Buffer, level: int | None = None) -> bytes:
    """Compress as Kafka's clients do; None is the codec's default level, and Snappy has none."""
    if codec is Codec.NONE:
        return bytes(data)
    if codec is Codec.GZIP:
        deflate = zlib.compressobj(-1 if level is None else level, wbits=31)
        return deflate.compress(data) + deflate.flush()
    if codec is Codec.SNAPPY:
        return _compress_xerial(memoryview(data))
    if codec is Codec.LZ4:
        # Kafka's Java reader refuses blocks that depend on each other.
        return bytes(lz4.frame.compress(data, compression_level=level or 0, block_linked=False, store_size=False))
    return bytes(cramjam.zstd.compress(data, 3 if level is None else level))


def decompress(codec: int, data: Buffer, max_output_bytes: int) -> bytes:
    """Decompress all of `data`.

    Raises:
        OutputTooLarge: the result is larger than `max_output_bytes`.
        Malformed: `data` is damaged or cut short, or `codec` unknown.
    """
    if codec == Codec.NONE:
        if len(data) > max_output_bytes:
            _too_large(max_output_bytes)
        return bytes(data)
    try:
        reader = _READERS[codec]
    except KeyError:
        raise Malformed(f"there is no compression codec {codec}") from None
    return reader(data, max_output_bytes)


def _compress_xerial(data: memoryview) -> bytes:
    parts: list[bytes] = [_XERIAL_HEADER]
    for pos in range(0, len(data), _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(data[pos : pos + _XERIAL_BLOCK_BYTES]))
        parts += (_INT32.pack(len(block)), block)
    return b"".join(parts)


def _decompress_gzip(data: Buffer, cap: int) -> bytes:
    parts: list[bytes] = []
    rest: Buffer = data
    room = cap
    for _ in range(_MAX_GZIP_MEMBERS):  # Members may follow each other (RFC 1952).
        inflate = zlib.decompressobj(wbits=31)
        try:
            part = inflate.decompress(rest, room + 1)
        except zlib.error as error:
            raise Malformed(f"gzip: {error}") from error
        room -= len(part)
        if room < 0:
            _too_large(cap)
        if not inflate.eof:
            raise Malformed("gzip: cut short")
        parts.append(part)
        rest = inflate.unused_data
        if not rest:
            return b"".join(parts)
    raise Malformed(f"gzip: more than {_MAX_GZIP_MEMBERS} members")


def _decompress_snappy(data: Buffer, cap: int) -> bytes:
    view = memoryview(data)
    if bytes(view[: len(_XERIAL_MAGIC)]) != _XERIAL_MAGIC:
        return _decompress_snappy_block(view, cap, cap)
    parts: list[bytes] = []
    room = cap
    pos = len(_XERIAL_HEADER)
    while pos < len(view):
        try:
            (size,) = _INT32.unpack_from(view, pos)
        except struct.error as error:
            raise Malformed("snappy: cut short") from error
        pos += 4
        if not 0 < size <= len(view) - pos:
            raise Malformed(f"snappy: a block of {size} bytes where {len(view) - pos} are left")
        part = _decompress_snappy_block(view[pos : pos + size], room, cap)
        parts.append(part)
        room -= len(part)
        pos += size
    return b"".join(parts)


def _decompress_snappy_block(block: memoryview, room: int, cap: int) -> bytes:
    try:
        if cramjam.snappy.decompress_raw_len(block) > room:
            _too_large(cap)
        return bytes(cramjam.snappy.decompress_raw(block))
    except cramjam.DecompressionError as error:
        raise Malformed(f"snappy: {error}") from error


def _decompress_lz4(data: Buffer, cap: int) -> bytes:
    try:
        inflate = lz4.frame.LZ4FrameDecompressor()
        output: bytes = inflate.decompress(data, max_length=cap + 1)
    except (RuntimeError, EOFError, ValueError, MemoryError) as error:  # what the library raises for bad input
        raise Malformed(f"lz4: {error}") from error
    if len(output) > cap:
        _too_large(cap)
    if not inflate.eof:
        raise Malformed("lz4: cut short")
    return output


def _decompress_zstd(data: Buffer, cap: int) -> bytes:
    bound = _zstd_output_bound(memoryview(data))
    output = bytearray(min(bound, cap))
    try:
        size = cramjam.zstd.decompress_into(data, output)
    except cramjam.DecompressionError as error:
        if bound > cap:
            _too_large(cap)
        raise Malformed(f"zstd: {error}") from error
    return bytes(memoryview(output)[:size])


def _zstd_output_bound(data: memoryview) -> int:
    """Most bytes that `data` can decompress to, from its frame and block headers (RFC 8878, 3.1)."""
    total = pos = 0
    try:
        while pos < len(data):
            (magic,) = struct.unpack_from("<I", data, pos)
            if magic & ~0xF == _ZSTD_SKIPPABLE_MAGIC:
                pos += 8 + struct.unpack_from("<I", data, pos + 4)[0]
                continue
            if magic != _ZSTD_MAGIC:
                raise Malformed("zstd: no frame")
            descriptor = data[pos + 4]
            single_segment = descriptor >> 5 & 1
            content_size_bytes = (single_segment, 2, 4, 8)[descriptor >> 6]
            pos += 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3] + content_size_bytes
            last = False
            while not last:
                header = data[pos] | data[pos + 1] << 8 | data[pos + 2] << 16
                pos += 3
                last = bool(header & 1)
                kind, size = header >> 1 & 3, header >> 3
                total += _ZSTD_BLOCK_BYTES if kind == 2 else size
                pos += 1 if kind == 1 else size
            pos += 4 * (descriptor >> 2 & 1)
    except (IndexError, struct.error) as error:
        raise Malformed("zstd: cut short") from error
    return total


def _too_large(cap: int) -> None:
    raise OutputTooLarge(f"records decompress to more than {cap} bytes")


_READERS = {
    int(Codec.GZIP): _decompress_gzip,
    int(Codec.SNAPPY): _decompress_snappy,
    int(Codec.LZ4): _decompress_lz4,
    int(Codec.ZSTD): _decompress_zstd,
}
