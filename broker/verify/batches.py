"""What must hold for the bytes of one block whose CRC was checked: Kafka batches, in order, as the index says. Pure."""

from __future__ import annotations

from broker.partition import decode_state
from broker.producer_state import ProducerStateCorrupt
from protocol.errors import Malformed
from protocol.records import crc_matches, iter_bounds, parse_batch_header
from s3stream.object_format import IndexEntry

__all__ = ["data_block_problem", "state_block_problem"]


def data_block_problem(entry: IndexEntry, data: memoryview) -> tuple[str | None, int]:
    """The first thing that is wrong with a data block, or None; and how many batches were looked at."""
    count = records = 0
    end_offset = entry.base_offset
    leader_epoch = -1
    max_timestamp_ms = -1
    try:
        for position, bounds in iter_bounds(data):
            batch = data[position : position + bounds.size_bytes]
            header = parse_batch_header(batch)
            where = f"the batch at offset {bounds.base_offset} (byte {position} of the block)"
            if count == 0 and bounds.base_offset != entry.base_offset:
                return f"{where} is the first, the index says {entry.base_offset}", count
            if bounds.base_offset < end_offset:
                return f"{where} begins below {end_offset}, where the one before it ends", count
            if not crc_matches(batch, header.crc):
                return f"{where} does not match its own CRC", count
            if not 0 < bounds.record_count <= bounds.end_offset - bounds.base_offset:
                return f"{where} claims {bounds.record_count} records", count
            if header.partition_leader_epoch < leader_epoch:
                return f"{where} has leader epoch {header.partition_leader_epoch} after {leader_epoch}", count
            if header.partition_leader_epoch > entry.leader_epoch:
                return (
                    f"{where} has leader epoch {header.partition_leader_epoch}, the block was uploaded under "
                    f"{entry.leader_epoch}"
                ), count
            count += 1
            records += bounds.record_count
            end_offset = bounds.end_offset
            leader_epoch = header.partition_leader_epoch
            max_timestamp_ms = max(max_timestamp_ms, bounds.max_timestamp_ms)
    except Malformed as error:
        return f"it does not consist of record batches from batch {count} on: {error}", count
    found = (end_offset, records, max_timestamp_ms)
    told = (entry.end_offset, entry.record_count, entry.max_timestamp_ms)
    if found != told:
        return (
            f"its batches end at {found[0]} with {found[1]} records and largest timestamp {found[2]}, the index says "
            f"{told[0]}, {told[1]} and {told[2]}"
        ), count
    return None, count


def state_block_problem(entry: IndexEntry, data: bytes) -> str | None:
    """What is wrong with a state block, or None."""
    try:
        producers, epochs = decode_state(data)
    except ProducerStateCorrupt as error:
        return str(error)
    for producer in producers.entries():
        for batch in producer.batches:
            if batch.base_offset + batch.record_count > entry.end_offset:
                return (
                    f"it is as of offset {entry.end_offset}, and knows a batch of producer {producer.producer_id} at "
                    f"{batch.base_offset}"
                )
    starts = epochs.entries()
    if starts and starts[-1][1] > entry.end_offset:
        return f"it is as of offset {entry.end_offset}, and knows leader epoch {starts[-1][0]} from {starts[-1][1]} on"
    return None
