"""Kafka's record batches inside a data block or a WAL frame, as rows."""

from __future__ import annotations

from collections.abc import Iterator

from broker.inspect.rows import DamageRow, Row, offsets, plural, shortened, size, when
from protocol.compression import Codec
from protocol.errors import Malformed
from protocol.record_set import iter_records
from protocol.records import NO_PRODUCER_ID, crc_matches, iter_bounds, parse_batch_header

__all__ = ["batch_rows"]

MAX_DECOMPRESSED_BYTES = 64 << 20
"""What one batch may inflate to where its records are shown."""


class BatchRow(Row, frozen=True, kw_only=True):
    """The header of one batch."""

    base_offset: int
    last_offset: int
    record_count: int
    size_bytes: int
    leader_epoch: int
    codec: str
    timestamp_type: str
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    transactional: bool
    control: bool
    crc_matches: bool

    def text(self) -> str:
        parts = [
            f"    batch {offsets(self.base_offset, self.last_offset + 1)}: {plural(self.record_count, 'record')}",
            size(self.size_bytes),
            f"leader epoch {self.leader_epoch}",
            self.codec,
            f"{self.timestamp_type} {when(self.max_timestamp_ms)}",
        ]
        if self.producer_id != NO_PRODUCER_ID:
            parts.append(f"producer {self.producer_id} epoch {self.producer_epoch} sequence {self.base_sequence}")
        if self.transactional:
            parts.append("transactional")
        if self.control:
            parts.append("control")
        if not self.crc_matches:
            parts.append("CRC DOES NOT MATCH")
        return ", ".join(parts)


class RecordRow(Row, frozen=True, kw_only=True):
    """One record; key, value and header values shortened, as hex where they are no text."""

    offset: int
    timestamp_ms: int
    key: str | None
    value: str | None
    headers: tuple[tuple[str, str | None], ...]

    def text(self) -> str:
        headers = "".join(f", {name}={value}" for name, value in self.headers)
        return f"      {self.offset} {when(self.timestamp_ms)} {self.key} = {self.value}{headers}"


def batch_rows(data: memoryview, *, with_records: bool) -> Iterator[Row]:
    """Every batch of a block that was checked, and its records where they are asked for."""
    try:
        for position, bounds in iter_bounds(data):
            batch = data[position : position + bounds.size_bytes]
            header = parse_batch_header(batch)
            yield BatchRow(
                base_offset=header.base_offset,
                last_offset=header.last_offset,
                record_count=header.record_count,
                size_bytes=header.size_bytes,
                leader_epoch=header.partition_leader_epoch,
                codec=_codec_name(header.codec),
                timestamp_type="LogAppendTime" if header.is_log_append_time else "CreateTime",
                base_timestamp_ms=header.base_timestamp,
                max_timestamp_ms=header.max_timestamp,
                producer_id=header.producer_id,
                producer_epoch=header.producer_epoch,
                base_sequence=header.base_sequence,
                transactional=header.is_transactional,
                control=header.is_control,
                crc_matches=crc_matches(batch, header.crc),
            )
            if with_records:
                yield from _record_rows(batch)
    except Malformed as error:
        yield DamageRow(message=f"the block does not consist of record batches: {error}")


def _record_rows(batch: memoryview) -> Iterator[Row]:
    try:
        for record in iter_records(batch, max_output_bytes=MAX_DECOMPRESSED_BYTES):
            yield RecordRow(
                offset=record.offset,
                timestamp_ms=record.timestamp_ms,
                key=shortened(record.key),
                value=shortened(record.value),
                headers=tuple((name, shortened(value)) for name, value in record.headers),
            )
    except Malformed as error:
        yield DamageRow(message=f"the records of the batch cannot be read: {error}")


def _codec_name(number: int) -> str:
    try:
        return Codec(number).name.lower()
    except ValueError:
        return f"codec {number}"
