"""Who goes through a stream in sequence, and how far ahead of it is read. Pure: it decides, `object_reader` reads.

Always true:
- A sequence is at one offset of a stream, and at most one sequence is there: readers that come to the same place go on as
  one, with the larger window. So several consumers in step read ahead as far as one alone, and once for all of them.
- The second read in sequence starts read-ahead, each further one doubles the window. Where there is no memory for it, or a
  block is evicted before use, the window is halved, down to nothing, and grows slowly from then on.
- How many sequences are remembered is bounded; the least recent is forgotten, and costs its reader the window.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from s3stream.catch_up_budget import Share
from s3stream.config import ReadSettings
from s3stream.metadata import StreamId

__all__ = ["ReadSequence", "ReadSequences"]

_COOL_DOWN_READS = 8
"""Reads between changes of a window that was too large once."""


@dataclass(slots=True, eq=False)
class ReadSequence:
    """Readers that go through a stream together; nearly always one."""

    offset: int
    """Where they come next."""
    share: Share = field(default_factory=Share)
    window_bytes: int = 0
    ahead_offset: int = 0
    """Exclusive end of what was asked for ahead of them."""
    ahead_bytes: int = 0
    """Roughly what of that they have not read yet."""
    busy: bool = False
    """Something is being asked for ahead of them right now."""
    _cool_down: int = 0
    """Reads until the window may change again."""
    _slow: bool = False
    """Was too large once: no more doubling."""

    def wants_more(self, settings: ReadSettings) -> bool:
        """Whether it is time to read ahead: a quarter of the window is used up, or there is room for a whole GET.

        The rest of the window is under way meanwhile: several GETs, since a reader takes what has come in no time.
        """
        least = min(self.window_bytes // 4, settings.max_get_size_bytes)
        return not self.busy and self.window_bytes - self.ahead_bytes >= least > 0

    def grow(self, settings: ReadSettings) -> None:
        """A reader came where it was expected."""
        if self._cool_down:
            self._cool_down -= 1
            return
        step = settings.read_ahead_initial_bytes
        if self._slow:
            self._cool_down = _COOL_DOWN_READS
        else:
            step = max(step, self.window_bytes)
        self.window_bytes = min(self.window_bytes + step, settings.read_ahead_max_bytes)

    def shrink(self) -> None:
        """There was no memory, or a block was evicted before a reader came to it."""
        if not (self._slow and self._cool_down):
            self.window_bytes //= 2
        self._slow = True
        self._cool_down = _COOL_DOWN_READS
        self.ahead_offset = self.ahead_bytes = 0


class ReadSequences:
    """All of them, by where they come next."""

    def __init__(self, settings: ReadSettings) -> None:
        self._settings = settings
        self._expected: OrderedDict[tuple[StreamId, int], ReadSequence] = OrderedDict()

    def __len__(self) -> int:
        return len(self._expected)

    def at(self, stream_id: StreamId, offset: int) -> ReadSequence:
        """The sequence that a read at an offset belongs to: one that is expected there, or a new one."""
        return self._expected.get((stream_id, offset)) or ReadSequence(offset)

    def moved(
        self, sequence: ReadSequence, stream_id: StreamId, offset: int, next_offset: int, size_bytes: int
    ) -> ReadSequence:
        """A read of `sequence` at an offset has ended at `next_offset`: the sequence that goes on from there."""
        expected = self._expected.get((stream_id, offset)) is sequence
        if expected:
            del self._expected[stream_id, offset]
            sequence.ahead_bytes = max(0, sequence.ahead_bytes - size_bytes)
            sequence.grow(self._settings)
        elif sequence.offset != offset:  # others of it were faster
            sequence = ReadSequence(next_offset)
        there = self._expected.pop((stream_id, next_offset), None)
        if there is not None and there.window_bytes >= sequence.window_bytes:
            sequence = there
        sequence.offset = next_offset
        self._expected[stream_id, next_offset] = sequence
        if len(self._expected) > self._settings.max_readers:
            self._expected.popitem(last=False)
        return sequence

    def clear(self) -> None:
        """Forget all of them."""
        self._expected.clear()
