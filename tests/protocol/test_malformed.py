"""Whatever the bytes, a decoder returns a message or raises `Malformed`, and it allocates no more than the bytes deserve."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from protocol import frames
from protocol.compiler import compile_decoder, compile_encoder
from protocol.errors import Malformed
from protocol.types import Buffer

from .examples import BODIES, Body, filled

SEED = 20261123
MUTANTS = 30_000
MUTANTS_PER_BODY = MUTANTS // len(BODIES) + 1
HOSTILE = [
    bytes.fromhex(x)
    for x in ("ffffffff", "7fffffff", "80000000", "ffffffff0f", "ffffffffff7f", "8080808000", "ffff", "00", "ff")
]

each_body = pytest.mark.parametrize("body", BODIES, ids=str)


@each_body
def test_mutated_messages_are_read_or_malformed(body: Body) -> None:
    rng = random.Random(f"{SEED} {body}")
    decode = compile_decoder(body.cls, body.version, body.flexible).call
    whole = encode(body)
    refused = 0
    for _ in range(MUTANTS_PER_BODY):
        frame = mutate(rng, whole)
        try:
            decode(memoryview(frame), 0)
        except Malformed:
            refused += 1
    assert refused > 0 or not whole  # ApiVersionsRequest v0-2 is empty, and what follows a message is ignored


@each_body
def test_every_proper_prefix_is_malformed(body: Body) -> None:
    decode = compile_decoder(body.cls, body.version, body.flexible).call
    whole = encode(body)
    for size in range(len(whole)):
        with pytest.raises(Malformed):
            decode(memoryview(whole[:size]), 0)
    decode(memoryview(whole), 0)


@each_body
def test_billions_of_elements_are_refused_before_they_cost_memory(body: Body) -> None:
    """Wherever a count or length may stand, a huge one is put there."""
    decode = compile_decoder(body.cls, body.version, body.flexible).call
    whole = encode(body)
    bomb = bytes.fromhex("ffffffff07") if body.flexible else bytes.fromhex("7fffffff")
    tracemalloc.start()
    try:
        for position in range(0, len(whole), 3):
            frame = whole[:position] + bomb + whole[position + (1 if body.flexible else 4) :]
            try:
                decode(memoryview(frame), 0)
            except Malformed:
                continue
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_mutated_headers_are_read_or_malformed() -> None:
    rng = random.Random(SEED)
    whole = bytes.fromhex("00120003000000070003616263020502abcd810100")
    for _ in range(3000):
        frame = mutate(rng, whole)
        for parse in (frames.parse_request_header, lambda frame: frames.parse_response_header(0, 9, frame)):
            try:
                parse(frame)
            except Malformed:
                continue


def encode(body: Body) -> bytes:
    parts: list[Buffer] = []
    compile_encoder(body.cls, body.version, body.flexible).call(filled(body.layout), parts)
    return b"".join(parts)


def mutate(rng: random.Random, whole: bytes) -> bytes:
    frame = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(frame) + 1)
        match rng.randrange(6):
            case 0:
                frame[position : position + 1] = bytes([rng.randrange(256)])
            case 1 if position < len(frame):
                frame[position] ^= 1 << rng.randrange(8)
            case 2:
                hostile = rng.choice(HOSTILE)
                frame[position : position + len(hostile)] = hostile
            case 3:
                del frame[position : position + rng.randint(1, 8)]
            case 4:
                frame[position:position] = rng.randbytes(rng.randint(1, 8))
            case _:
                del frame[position:]
        if not frame:
            break
    return bytes(frame)
