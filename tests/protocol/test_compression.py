"""Codecs: every framing that clients use, and a cap that holds."""

from __future__ import annotations

import gzip
import random
import tracemalloc

import cramjam
import lz4.frame
import pytest
import snappy
import zstandard

from protocol.compression import Codec, compress, decompress
from protocol.errors import Malformed, OutputTooLarge

TEXT = b"".join(b"line %d of a log that compresses well\n" % i for i in range(5000))
NOISE = random.Random(1).randbytes(200_000)
each_codec = pytest.mark.parametrize("codec", Codec)
each_real_codec = pytest.mark.parametrize("codec", [codec for codec in Codec if codec is not Codec.NONE])


@each_codec
@pytest.mark.parametrize(
    "data", [b"", b"x", TEXT, NOISE, bytes(1_000_000)], ids=["empty", "byte", "text", "noise", "zeros"]
)
def test_what_is_compressed_comes_back(codec: Codec, data: bytes) -> None:
    assert decompress(codec, compress(codec, data), len(data)) == data
    assert decompress(codec, memoryview(compress(codec, memoryview(data))), len(data)) == data


@each_codec
def test_output_may_reach_the_cap_and_no_further(codec: Codec) -> None:
    packed = compress(codec, TEXT)
    assert decompress(codec, packed, len(TEXT)) == TEXT
    for cap in (len(TEXT) - 1, 1, 0):
        with pytest.raises(OutputTooLarge, match=str(cap)):
            decompress(codec, packed, cap)


@each_real_codec
def test_a_bomb_costs_no_more_memory_than_the_cap(codec: Codec) -> None:
    bomb = compress(codec, bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(OutputTooLarge):
            decompress(codec, bomb, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@each_real_codec
def test_damaged_input_is_malformed_or_decompresses(codec: Codec) -> None:
    rng = random.Random(f"damage {codec}")
    packed = compress(codec, TEXT)
    for _ in range(500):
        damaged = bytearray(packed)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        try:
            assert len(decompress(codec, bytes(damaged), len(TEXT))) <= len(TEXT)
        except Malformed:
            continue


@pytest.mark.parametrize("codec", [Codec.GZIP, Codec.LZ4, Codec.ZSTD])
def test_input_cut_short_is_malformed(codec: Codec) -> None:
    packed = compress(codec, NOISE)
    for size in (1, 5, 100, len(packed) // 2, len(packed) - 1):
        with pytest.raises(Malformed):
            decompress(codec, packed[:size], len(NOISE))


@pytest.mark.parametrize("codec", [5, 6, 7])
def test_there_are_no_other_codecs(codec: int) -> None:
    with pytest.raises(Malformed, match=str(codec)):
        decompress(codec, b"", 100)


def test_gzip_members_may_follow_each_other() -> None:
    packed = gzip.compress(TEXT) + gzip.compress(NOISE)
    assert decompress(Codec.GZIP, packed, len(TEXT) + len(NOISE)) == TEXT + NOISE
    with pytest.raises(OutputTooLarge):
        decompress(Codec.GZIP, packed, len(TEXT) + len(NOISE) - 1)


def test_snappy_is_read_with_and_without_the_java_framing() -> None:
    assert decompress(Codec.SNAPPY, snappy.compress(TEXT), len(TEXT)) == TEXT
    assert compress(Codec.SNAPPY, TEXT)[:16] == bytes.fromhex("82534e41505059000000000100000001")


@pytest.mark.parametrize("tail", ["000000", "ffffffff", "00000000", "0000000500", "7fffffff00"])
def test_snappy_blocks_of_a_wrong_size_are_malformed(tail: str) -> None:
    with pytest.raises(Malformed, match="snappy"):
        decompress(Codec.SNAPPY, compress(Codec.SNAPPY, TEXT) + bytes.fromhex(tail), 1 << 20)


def test_a_snappy_block_that_claims_gigabytes_is_refused_before_it_is_read() -> None:
    with pytest.raises(OutputTooLarge):
        decompress(Codec.SNAPPY, bytes.fromhex("ffffffff0f") + b"\0", 1 << 20)


def test_lz4_blocks_are_independent_as_kafkas_java_reader_wants_them() -> None:
    assert not lz4.frame.get_frame_info(compress(Codec.LZ4, TEXT))["block_linked"]


def test_lz4_frames_of_every_shape() -> None:
    for linked in (True, False):
        packed = lz4.frame.compress(TEXT, block_linked=linked, content_checksum=True, block_checksum=True)
        assert decompress(Codec.LZ4, packed, len(TEXT)) == TEXT


def test_zstd_frames_of_every_shape() -> None:
    one_shot = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    flushed = b"".join(
        stream.compress(TEXT[i : i + 1000]) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        for i in range(0, len(TEXT), 1000)
    )
    flushed += stream.flush()
    skippable = bytes.fromhex("502a4d1803000000abcdef")
    raw_and_repeated = zstandard.ZstdCompressor().compress(NOISE) + zstandard.ZstdCompressor().compress(bytes(300_000))
    for packed, data in (
        (one_shot, TEXT),
        (flushed, TEXT),
        (skippable + one_shot, TEXT),
        (raw_and_repeated, NOISE + bytes(300_000)),
        (bytes(cramjam.zstd.compress(TEXT, 19)), TEXT),
    ):
        assert decompress(Codec.ZSTD, packed, len(data)) == data
        with pytest.raises(OutputTooLarge):
            decompress(Codec.ZSTD, packed, len(data) - 1)


def test_zstd_needs_a_frame() -> None:
    with pytest.raises(Malformed, match="no frame"):
        decompress(Codec.ZSTD, bytes(20), 100)


@pytest.mark.parametrize(("codec", "fast", "best"), [(Codec.GZIP, 1, 9), (Codec.ZSTD, -131072, 22), (Codec.LZ4, 1, 12)])
def test_levels(codec: Codec, fast: int, best: int) -> None:
    data = b"".join(b"%d squared is %d\n" % (n, n * n) for n in range(2000))
    packed = {level: compress(codec, data, level) for level in (fast, best)}
    assert len(packed[best]) < len(packed[fast])
    assert all(decompress(codec, each, len(data)) == data for each in packed.values())
