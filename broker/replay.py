"""Brings a partition's state up to date with batches that its log holds past the newest checkpoint. Pure.

Always true: the outcome is that of recording batch by batch, but only what leaves something behind is looked at in full: a
recovery replays millions of tiny batches.
- Leader epochs never go back along a log, so the last batch tells whether there is a new one, and a search finds its start.
- Of each producer only the last `DUPLICATES_REMEMBERED` batches are remembered. They are found from the end, and recorded in
  the order of the producers' last appends.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from broker.leader_epochs import LeaderEpochs
from broker.producer_state import DUPLICATES_REMEMBERED, ProducerStates
from protocol.records import NO_PRODUCER_ID, batch_producer_id, parse_batch_header
from s3stream.objectstore import Buffer

__all__ = ["replay_batches"]


def replay_batches(
    buffer: Buffer, positions: Sequence[int], producers: ProducerStates, epochs: LeaderEpochs, now_ms: int
) -> None:
    """Take in the batches that start at `positions`, in log order, at least one. They count as appended at `now_ms`."""
    _replay_epochs(buffer, positions, epochs)
    newest: dict[int, list[int]] = {}
    for position in reversed(positions):
        producer_id = batch_producer_id(buffer, position)
        if producer_id != NO_PRODUCER_ID:
            kept = newest.get(producer_id)
            if kept is None:
                newest[producer_id] = [position]
            elif len(kept) < DUPLICATES_REMEMBERED:
                kept.append(position)
    for producer_id in reversed(newest):
        for position in reversed(newest[producer_id]):
            header = parse_batch_header(buffer, position)
            producers.record(
                producer_id,
                header.producer_epoch,
                header.base_sequence,
                header.record_count,
                header.base_offset,
                header.max_timestamp if header.is_log_append_time else -1,
                now_ms,
            )


def _replay_epochs(buffer: Buffer, positions: Sequence[int], epochs: LeaderEpochs) -> None:
    def epoch_at(position: int) -> int:
        return parse_batch_header(buffer, position).partition_leader_epoch

    last = epoch_at(positions[-1])
    while epochs.newest < last:
        header = parse_batch_header(buffer, positions[bisect_right(positions, epochs.newest, key=epoch_at)])
        epochs.begin(header.partition_leader_epoch, header.base_offset)
