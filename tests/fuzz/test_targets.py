"""Each fuzz target over its seeds, over what is nearly a seed, and over everything that fuzzing ever found. Without Atheris."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS, Target

REGRESSIONS = Path(__file__).parent / "regressions"
MUTANTS = 1500
HOSTILE = [bytes.fromhex(x) for x in ("ffffffff", "7fffffff", "80000000", "ffffffff0f", "00", "ff", "ffffffffffffffff")]

each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def mutants(rng: random.Random, seeds: list[bytes]) -> Iterator[bytes]:
    for _ in range(MUTANTS):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(5):
                case 0 if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    hostile = rng.choice(HOSTILE)
                    data[at : at + len(hostile)] = hostile
                case 2:
                    del data[at : at + rng.randint(1, 16)]
                case 3:
                    data[at:at] = rng.randbytes(rng.randint(1, 16))
                case _:
                    other = rng.choice(seeds)
                    data[at:] = other[rng.randrange(len(other) + 1) :]
        yield bytes(data)


@each_target
def test_seeds_are_taken(target: Target) -> None:
    for seed in SEEDS[target.name]():
        assert target(seed) or target.name in ("stored_batches", "wal_frames", "wal_damage"), seed.hex()


@each_target
def test_mutants_are_taken_or_refused(target: Target) -> None:
    refused = sum(not target(data) for data in mutants(random.Random(target.name), list(SEEDS[target.name]())))
    assert bool(refused) == bool(target.refusals)


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())
