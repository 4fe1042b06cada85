"""Which leader epoch began at which offset, for one partition: Kafka's leader epoch cache (KIP-101, KIP-320).

Always true:
- Entries are in order, both of epoch and of start offset; an epoch without records leaves no entry, except the newest.
- Pure: what it says follows from what was appended, so it can be rebuilt from the batches' headers.
"""

from __future__ import annotations

import enum
from bisect import bisect_right

__all__ = ["EpochCheck", "LeaderEpochs", "check_leader_epoch"]


class EpochCheck(enum.Enum):
    """What a client's idea of the leader epoch is worth."""

    CURRENT = 0
    FENCED = 1
    """The client is behind: it must refresh its metadata (error 74)."""
    UNKNOWN = 2
    """The client has seen a newer leader than this broker knows of (error 75)."""


def check_leader_epoch(asked: int, current: int) -> EpochCheck:
    """Compare the `current_leader_epoch` of a request with ours; -1 skips the check (KIP-320)."""
    if asked in (-1, current):
        return EpochCheck.CURRENT
    return EpochCheck.FENCED if asked < current else EpochCheck.UNKNOWN


class LeaderEpochs:
    """Start offsets of leader epochs."""

    __slots__ = ("_epochs", "_starts", "newest")

    def __init__(self) -> None:
        self._epochs: list[int] = []
        self._starts: list[int] = []
        self.newest = -1
        """The newest epoch known, -1 for none."""

    def entries(self) -> list[tuple[int, int]]:
        """(leader epoch, start offset), oldest first; `begin` with each of them makes the same again."""
        return list(zip(self._epochs, self._starts, strict=True))

    def begin(self, leader_epoch: int, start_offset: int) -> None:
        """A batch of `leader_epoch` was, or will be, appended at `start_offset`."""
        if leader_epoch <= self.newest:
            return
        epochs, starts = self._epochs, self._starts
        if starts and starts[-1] >= start_offset:
            # The former epoch left no record behind.
            epochs.pop()
            starts.pop()
        epochs.append(leader_epoch)
        starts.append(start_offset)
        self.newest = leader_epoch

    def end_offset(self, leader_epoch: int, log_end_offset: int) -> tuple[int, int]:
        """The largest known epoch at or below the asked one, and where it ends (exclusive).

        An epoch that is older than all known ends where those begin; (-1, -1) where none is known, and for -1.
        """
        at = bisect_right(self._epochs, leader_epoch)
        if at == 0:
            return (leader_epoch, self._starts[0]) if leader_epoch >= 0 and self._starts else (-1, -1)
        end = self._starts[at] if at < len(self._starts) else log_end_offset
        return self._epochs[at - 1], end

    def epoch_at(self, offset: int) -> int:
        """Epoch of the batch at an offset, -1 where it is older than all known."""
        at = bisect_right(self._starts, offset)
        return self._epochs[at - 1] if at else -1

    def trim(self, log_start_offset: int) -> None:
        """Forget epochs that end at or below the log start; the one that holds it now begins there."""
        at = bisect_right(self._starts, log_start_offset)
        if at > 1:
            del self._epochs[: at - 1]
            del self._starts[: at - 1]
        if at and self._starts:
            self._starts[0] = max(self._starts[0], log_start_offset)
