"""State blocks of partitions as rows: producers and leader epochs as of an offset."""

from __future__ import annotations

import msgspec

from broker.inspect.rows import DamageRow, Row, plural, size, when
from broker.partition import decode_state
from broker.producer_state import ProducerStateCorrupt

__all__ = ["StateBlockRow", "state_row"]

_SHOWN_PRODUCERS = 20
"""In text; `--json` has all of them."""


class ProducerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One idempotent producer."""

    producer_id: int
    producer_epoch: int
    last_sequence: int
    last_offset: int
    """-1 where none of its batches is remembered."""
    last_append_ms: int


class StateBlockRow(Row, frozen=True, kw_only=True):
    """One state block."""

    as_of_offset: int
    size_bytes: int
    producers: tuple[ProducerInfo, ...]
    leader_epochs: tuple[tuple[int, int], ...]
    """(leader epoch, start offset)"""

    def text(self) -> str:
        epochs = ", ".join(f"{epoch} from {start}" for epoch, start in self.leader_epochs) or "none"
        lines = [
            f"    state as of offset {self.as_of_offset}: {size(self.size_bytes)}, "
            f"{plural(len(self.producers), 'producer')}; leader epochs {epochs}"
        ]
        lines += [
            f"      producer {each.producer_id} epoch {each.producer_epoch}: last sequence {each.last_sequence}, "
            f"last offset {each.last_offset}, last append {when(each.last_append_ms)}"
            for each in self.producers[:_SHOWN_PRODUCERS]
        ]
        if len(self.producers) > _SHOWN_PRODUCERS:
            lines.append(f"      … and {len(self.producers) - _SHOWN_PRODUCERS} more")
        return "\n".join(lines)


def state_row(as_of_offset: int, data: bytes) -> Row:
    """What a state block, whose CRC was checked, holds."""
    try:
        producers, epochs = decode_state(data)
    except ProducerStateCorrupt as error:
        return DamageRow(message=f"the state as of offset {as_of_offset} cannot be read: {error}")
    return StateBlockRow(
        as_of_offset=as_of_offset,
        size_bytes=len(data),
        producers=tuple(
            ProducerInfo(
                producer_id=entry.producer_id,
                producer_epoch=entry.producer_epoch,
                last_sequence=entry.last_sequence,
                last_offset=entry.batches[-1].base_offset + entry.batches[-1].record_count - 1 if entry.batches else -1,
                last_append_ms=entry.last_append_ms,
            )
            for entry in producers.entries()
        ),
        leader_epochs=tuple(epochs.entries()),
    )
