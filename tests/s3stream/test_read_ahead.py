"""How far ahead is read: more for readers in sequence, less where it does not fit, once for readers in step."""

from __future__ import annotations

from s3stream.config import ReadSettings
from s3stream.metadata import StreamId
from s3stream.read_ahead import ReadSequence, ReadSequences

KIB = 1 << 10
STREAM = StreamId(1)
SETTINGS = ReadSettings(read_ahead_initial_bytes=4 * KIB, read_ahead_max_bytes=32 * KIB)


def read(sequences: ReadSequences, offset: int, size: int = 1000) -> ReadSequence:
    """A reader reads ten offsets from `offset` on."""
    return sequences.moved(sequences.at(STREAM, offset), STREAM, offset, offset + 10, size)


def windows(sequences: ReadSequences, offsets: range) -> list[int]:
    return [read(sequences, offset).window_bytes // KIB for offset in offsets]


def test_the_window_doubles_with_each_read_in_sequence_up_to_its_bound() -> None:
    assert windows(ReadSequences(SETTINGS), range(0, 60, 10)) == [0, 4, 8, 16, 32, 32]


def test_who_jumps_has_no_window() -> None:
    sequences = ReadSequences(SETTINGS)
    assert windows(sequences, range(0, 1000, 70)) == [0] * 15


def test_more_is_wanted_when_a_quarter_of_the_window_is_used_up() -> None:
    sequences = ReadSequences(SETTINGS)
    read(sequences, 0)
    sequence = read(sequences, 10)
    assert sequence.wants_more(SETTINGS)
    sequence.ahead_bytes = 4 * KIB
    assert not sequence.wants_more(SETTINGS)
    sequence.ahead_bytes = 3 * KIB
    assert sequence.wants_more(SETTINGS)
    sequence.busy = True
    assert not sequence.wants_more(SETTINGS)


def test_what_did_not_fit_is_halved_down_to_nothing_and_grows_slowly_from_then_on() -> None:
    sequences = ReadSequences(SETTINGS)
    assert windows(sequences, range(0, 50, 10))[-1] == 32
    sequence = sequences.at(STREAM, 50)
    sequence.shrink()
    assert sequence.window_bytes == 16 * KIB
    sequence.shrink()  # the same trouble, told twice
    assert sequence.window_bytes == 16 * KIB
    assert windows(sequences, range(50, 230, 10)) == [16] * 8 + [20] * 9 + [24]
    for at in range(230, 1000, 90):  # trouble time and again
        sequences.at(STREAM, at).shrink()
        windows(sequences, range(at, at + 80, 10))
        sequences.at(STREAM, at + 80).shrink()
        read(sequences, at + 80)
    assert sequence.window_bytes < 4 * KIB
    assert not sequence.wants_more(SETTINGS) or sequence.window_bytes


def test_readers_in_step_go_on_as_one_whose_window_grows_once_a_step() -> None:
    sequences = ReadSequences(SETTINGS)
    found = []
    for offset in range(0, 50, 10):
        together = [sequences.at(STREAM, offset) for _ in range(5)]  # all five read at the same time
        after = [sequences.moved(each, STREAM, offset, offset + 10, 1000) for each in together]
        assert len({id(each) for each in after}) == 1
        found.append(after[0].window_bytes // KIB)
    assert found == [0, 4, 8, 16, 32]
    assert len(sequences) == 1


def test_readers_that_take_turns_at_a_place_keep_its_window() -> None:
    sequences = ReadSequences(SETTINGS)
    for offset in range(0, 50, 10):
        for _ in range(5):  # one after the other: those behind the first are not expected there any more
            sequence = read(sequences, offset)
    assert sequence.window_bytes == 32 * KIB
    assert len(sequences) == 1


def test_one_that_falls_behind_has_a_window_of_its_own() -> None:
    sequences = ReadSequences(SETTINGS)
    for offset in range(0, 100, 10):
        read(sequences, offset)
    assert windows(sequences, range(0, 40, 10)) == [0, 4, 8, 16]
    assert sequences.at(STREAM, 100).window_bytes == 32 * KIB


def test_how_many_are_remembered_is_bounded() -> None:
    sequences = ReadSequences(ReadSettings(max_readers=3))
    for offset in range(0, 1000, 100):
        read(sequences, offset)
    assert len(sequences) == 3
    assert sequences.at(STREAM, 910).offset == 910
    assert read(sequences, 910).window_bytes > 0
    assert read(sequences, 610).window_bytes == 0
