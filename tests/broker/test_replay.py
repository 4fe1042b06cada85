"""What is rebuilt from a log equals what was never lost (I11)."""

from __future__ import annotations

import random

import pytest

from broker import producer_state
from broker.leader_epochs import LeaderEpochs
from broker.producer_state import ProducerStates
from broker.replay import replay_batches
from protocol.records import NO_PRODUCER_ID, parse_batch_header, stamp
from tests.broker.wire import batch


def log_of(rng: random.Random, producers: int, count: int) -> tuple[bytes, list[int]]:
    """Batches of some producers, a few without an id, under growing leader epochs; and where each starts."""
    log = bytearray()
    positions = []
    sequences: dict[tuple[int, int], int] = {}
    epochs = [0] * producers
    leader_epoch = offset = 0
    for _ in range(count):
        producer_id = rng.choice([NO_PRODUCER_ID, *range(producers)])
        records = rng.randrange(1, 4)
        if producer_id == NO_PRODUCER_ID:
            made = bytearray(batch(*[b"x"] * records))
        else:
            epochs[producer_id] += rng.random() < 0.1
            key = producer_id, epochs[producer_id]
            sequence = sequences.get(key, 0)
            sequences[key] = sequence + records
            made = bytearray(
                batch(*[b"x"] * records, producer_id=producer_id, producer_epoch=key[1], base_sequence=sequence)
            )
        leader_epoch += rng.choice([0] * 9 + [1, 3])
        stamp(made, len(made) - 12, offset, leader_epoch)
        positions.append(len(log))
        log += made
        offset += records
    return bytes(log), positions


def recorded_one_by_one(log: bytes, positions: list[int]) -> tuple[ProducerStates, LeaderEpochs]:
    producers, epochs = ProducerStates(), LeaderEpochs()
    for position in positions:
        header = parse_batch_header(log, position)
        epochs.begin(header.partition_leader_epoch, header.base_offset)
        if header.producer_id != NO_PRODUCER_ID:
            producers.record(
                header.producer_id,
                header.producer_epoch,
                header.base_sequence,
                header.record_count,
                header.base_offset,
                -1,
                7,
            )
    return producers, epochs


def replayed(log: bytes, positions: list[int], rng: random.Random) -> tuple[ProducerStates, LeaderEpochs]:
    """Piece by piece, as it comes from the log."""
    producers, epochs = ProducerStates(), LeaderEpochs()
    while positions:
        size = rng.randrange(1, 40)
        replay_batches(log, positions[:size], producers, epochs, 7)
        positions = positions[size:]
    return producers, epochs


@pytest.mark.parametrize("seed", range(50))
def test_replay_equals_recording_every_batch(seed: int) -> None:
    rng = random.Random(seed)
    log, positions = log_of(rng, producers=rng.randrange(1, 6), count=rng.randrange(1, 200))

    producers, epochs = replayed(log, positions, rng)

    expected_producers, expected_epochs = recorded_one_by_one(log, positions)
    assert producers.snapshot() == expected_producers.snapshot(), "and in the order of their last appends"
    assert epochs.entries() == expected_epochs.entries()


def test_the_producers_that_were_idle_longest_are_forgotten_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer_state, "MAX_PRODUCERS_PER_PARTITION", 5)
    rng = random.Random(1)
    log, positions = log_of(rng, producers=30, count=200)

    producers, _ = replayed(log, positions, rng)

    expected, _ = recorded_one_by_one(log, positions)
    assert [pid for pid in range(30) if pid in producers] == [pid for pid in range(30) if pid in expected]
