"""Looks at the records inside of a batch, where Kafka's contract needs it: are there keys, which record is the first at a time;
and compresses a batch anew where its topic names another codec.

A batch of a megabyte can inflate to gigabytes, and hold millions of records or headers: to walk over them takes seconds, and to
make objects of them takes more memory than there is. So:
- nothing is made of a record but a `RecordMark`, and what a batch may inflate to is capped;
- what is small is looked at in the callback that asks; anything larger is inflated, and compressed, in a thread and walked over in
  slices, between which all others have their turn;
- one large batch at a time is in memory, inflated.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from protocol.compression import Codec, compress, decompress
from protocol.errors import ErrorCode, InvalidRecords, Malformed, OutputTooLarge
from protocol.record_set import RecordMark, walk_records, with_records
from protocol.records import ATTRIBUTES_POSITION, HEADER_BYTES, BatchHeader, parse_batch_header
from s3stream.objectstore import Buffer
from wal.checksum import crc32c

__all__ = ["AT_ONCE_BYTES", "MAX_INFLATED_BYTES", "BatchTreatment", "RecordWalks", "Treatment", "treat"]

MAX_INFLATED_BYTES = 16 << 20
"""Cap on what a batch may inflate to where its records have to be looked at: sixteen times what the largest batch of the default
`message.max.bytes` holds. Clients bound what they put into a batch before they compress it."""

AT_ONCE_BYTES = 128 << 10
"""What is looked at without a pause: a millisecond for records of a hundred bytes, some five for the smallest."""

STEPS_AT_ONCE = 4096
"""Records and headers between two pauses: about a millisecond."""

MAX_LOOK_UP_STEPS = 500_000
"""Where the record at a time is not among so many, the batch as a whole is the answer: it is where a consumer would begin to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What a topic wants to be done with a batch before it is appended."""

    needs_keys: bool
    """Every record must have a key (`cleanup.policy` with `compact`)."""
    codec: Codec | None
    """What a batch that comes in another codec is compressed anew to (`compression.type`); None: all are kept as sent."""
    codec_level: int | None
    """None: the codec's default."""

    def codec_for(self, header: BatchHeader) -> Codec | None:
        """The codec that a batch is to be compressed anew to; None: keep it as it is."""
        return None if self.codec == header.codec else self.codec

    def is_idle(self, header: BatchHeader) -> bool:
        """There is nothing to be done with this batch."""
        return not self.needs_keys and self.codec_for(header) is None


def treat(batch: bytes | memoryview, header: BatchHeader, wanted: Treatment) -> bytes | memoryview | None:
    """Look into a small batch, its CRC first; returns the batch to append. None: it is too large to be looked into now.

    Raises:
        InvalidRecords: a record without a key where one is needed, damage, or too much of it.
    """
    if wanted.is_idle(header):
        return batch
    if len(batch) > AT_ONCE_BYTES:
        return None
    _check_crc(batch, header)
    try:
        data = decompress(header.codec, memoryview(batch)[HEADER_BYTES:], AT_ONCE_BYTES)
    except OutputTooLarge:
        return None
    except Malformed as error:
        raise _unreadable(error) from error
    check = _Check(wanted, header)
    try:
        for mark in walk_records(header, data):
            if mark is not None:
                check(mark)
    except Malformed as error:
        raise _unreadable(error) from error
    codec = wanted.codec_for(header)
    return batch if codec is None else with_records(header, codec, compress(codec, data, wanted.codec_level))


class _Check:
    """Of one record after the other. Never wants one, so that a walk goes on to the end."""

    __slots__ = ("_in_order", "_needs_keys", "_next_offset")

    def __init__(self, wanted: Treatment, header: BatchHeader) -> None:
        self._needs_keys = wanted.needs_keys
        self._in_order = wanted.codec_for(header) is not None
        """As Kafka's broker checks where it compresses anew."""
        self._next_offset = header.base_offset

    def __call__(self, mark: RecordMark) -> bool:
        if self._needs_keys and not mark.has_key:
            raise InvalidRecords(ErrorCode.INVALID_RECORD, "a compacted topic takes no record without a key")
        if self._in_order and mark.offset != self._next_offset:
            raise InvalidRecords(
                ErrorCode.INVALID_RECORD, f"a record has offset {mark.offset} where {self._next_offset} comes next"
            )
        self._next_offset += 1
        return False


class BatchTreatment:
    """The treatment of a large batch."""

    __slots__ = ("_batch", "_error", "done")

    def __init__(self) -> None:
        self.done = False
        self._batch = b""
        self._error: Exception | None = None

    def outcome(self) -> bytes:
        """The batch to append.

        Raises:
            InvalidRecords: see `treat`.
        """
        assert self.done
        if self._error is not None:
            raise self._error
        return self._batch

    async def run(self, walks: RecordWalks, batch: bytes, wanted: Treatment) -> None:
        """Come to an outcome."""
        header = parse_batch_header(batch)
        try:
            _check_crc(batch, header)
            self._batch = await walks.treated_batch(batch, header, wanted)
        except InvalidRecords as error:
            self._error = error
        except Malformed as error:
            self._error = _unreadable(error)
        except Exception as error:  # a mistake of ours: told where the outcome is asked for
            self._error = error
        self.done = True


class RecordWalks:
    """The walks of one broker."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._treating: asyncio.Task[None] | None = None

    async def first(
        self, batch: Buffer, wanted: Callable[[RecordMark], bool], max_steps: int | None = None
    ) -> RecordMark | None:
        """The first record of a batch that is wanted; None where none is, or not among `max_steps` records and headers.

        Raises:
            Malformed: the records cannot be read.
            OutputTooLarge: there is more than `MAX_INFLATED_BYTES` of them.
        """
        header = parse_batch_header(batch)
        packed = memoryview(batch)[HEADER_BYTES:]
        if len(packed) <= AT_ONCE_BYTES:
            with contextlib.suppress(OutputTooLarge):
                data = decompress(header.codec, packed, AT_ONCE_BYTES)
                return next((mark for mark in walk_records(header, data) if mark is not None and wanted(mark)), None)
        async with self._turn:
            data = await asyncio.to_thread(decompress, header.codec, packed, MAX_INFLATED_BYTES)
            return await _first_in_slices(header, data, wanted, max_steps)

    async def treated_batch(self, batch: bytes, header: BatchHeader, wanted: Treatment) -> bytes:
        """Look into a large batch; returns the batch to append.

        Raises:
            InvalidRecords, Malformed, OutputTooLarge: see `treat`.
        """
        async with self._turn:
            packed = memoryview(batch)[HEADER_BYTES:]
            data = await asyncio.to_thread(decompress, header.codec, packed, MAX_INFLATED_BYTES)
            await _first_in_slices(header, data, _Check(wanted, header), None)
            codec = wanted.codec_for(header)
            if codec is None:
                return batch
            packed = memoryview(await asyncio.to_thread(compress, codec, data, wanted.codec_level))
            return with_records(header, codec, packed)

    def treat(
        self,
        batch: Buffer,
        wanted: Treatment,
        start_task: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> BatchTreatment | None:
        """Begin to treat a large batch, which is copied; None: another one is being treated, ask again after `treated`."""
        if self._treating is not None:
            return None
        treatment = BatchTreatment()
        self._treating = task = start_task(treatment.run(self, bytes(batch), wanted))
        task.add_done_callback(self._ended)
        return treatment

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._treating = None

    @property
    def is_treating(self) -> bool:
        """Whether a large batch is being treated."""
        return self._treating is not None

    async def treated(self) -> None:
        """Return when the treatment that is under way has ended."""
        if self._treating is not None:
            await asyncio.wait((self._treating,))


async def _first_in_slices(
    header: BatchHeader, data: bytes, wanted: Callable[[RecordMark], bool], max_steps: int | None
) -> RecordMark | None:
    for step, mark in enumerate(walk_records(header, data), 1):
        if mark is not None and wanted(mark):
            return mark
        if step % STEPS_AT_ONCE == 0:
            if max_steps is not None and step >= max_steps:
                return None
            await asyncio.sleep(0)
    return None


def _check_crc(batch: Buffer, header: BatchHeader) -> None:
    # What is about to be taken apart must be what the client sent.
    if crc32c(memoryview(batch)[ATTRIBUTES_POSITION:]) != header.crc:
        raise InvalidRecords(ErrorCode.CORRUPT_MESSAGE, "the CRC of a batch does not match its bytes")


def _unreadable(error: Malformed) -> InvalidRecords:
    code = ErrorCode.MESSAGE_TOO_LARGE if isinstance(error, OutputTooLarge) else ErrorCode.CORRUPT_MESSAGE
    return InvalidRecords(code, f"the records of a batch cannot be read: {error}")
