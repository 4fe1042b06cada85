"""Many histories of a WAL in a bucket (see `tests.wal.slot_simulation`), and mistakes that they would find.

`TIDELOG_SLOT_SEEDS=20000 pytest tests/wal/test_object_wal_simulation.py` runs more of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

from tests.wal.slot_simulation import Violation, simulate
from wal.errors import WalError
from wal.object_wal import ObjectWal
from wal.slot import Position, SlotHeader
from wal.slot_log import End, SlotLog

SEEDS = int(os.environ.get("TIDELOG_SLOT_SEEDS", "300"))
PLANTED_SEEDS = 400


def test_nothing_acknowledged_is_lost_and_nothing_past_a_fence_is_acknowledged() -> None:
    acknowledged = epochs = 0
    for seed in range(SEEDS):
        try:
            history = simulate(seed)
        except Exception as error:
            error.add_note(f"seed {seed}: python -c 'from tests.wal.slot_simulation import simulate; simulate({seed})'")
            raise
        acknowledged += sum(one.acknowledged > one.start_offset for one in history.incarnations)
        epochs += max(one.wal_epoch for one in history.incarnations)
    assert acknowledged > SEEDS, "the histories are about something"
    assert epochs > 2 * SEEDS, "and writers take over from each other"


def _simulate_many(seeds: int) -> None:
    for seed in range(seeds):
        simulate(seed)


async def _believe_any_fence(self: SlotLog, fence: SlotHeader) -> bool:
    return True


async def _believe_any_412(self: SlotLog, header: SlotHeader, frames: Sequence[Any] = ()) -> bool:
    await _occupy(self, header, frames)
    return True


def _count_whatever_is_filled(self: ObjectWal) -> None:
    self._under_way = type(self._under_way)(sorted(self._under_way, key=lambda slot: not slot.filled))
    _settle(self)


def _trim_more_than_is_durable(self: ObjectWal, trim_offset: int) -> Position:
    return Position(self.wal_epoch, self._next_number)


async def _delete_fences_too(self: SlotLog, end: End, needed: Any) -> int:
    survey = await self._survey(Position(0, 0))
    found = [
        Position(epoch, number)
        for epoch in survey.by_epoch
        for number, _ in survey.by_epoch[epoch]
        if epoch <= end.wal_epoch
    ]
    await self.delete([position for position in found if position not in needed])
    return 0


_occupy = SlotLog.occupy
_settle = ObjectWal._settle


@pytest.mark.parametrize(
    ("owner", "name", "mistake"),
    [
        (SlotLog, "_ends_the_log", _believe_any_fence),
        (SlotLog, "occupy", _believe_any_412),
        (ObjectWal, "_settle", _count_whatever_is_filled),
        (ObjectWal, "_first_needed", _trim_more_than_is_durable),
        (SlotLog, "delete_leftovers", _delete_fences_too),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_planted_mistakes_are_found(owner: type, name: str, mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, mistake)
    with pytest.raises((Violation, WalError, ExceptionGroup)):
        _simulate_many(PLANTED_SEEDS)
