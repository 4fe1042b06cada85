"""Looks at the records inside of a batch, where Kafka's contract needs it: are there keys, which record is the first at a time.

A batch of a megabyte can inflate to gigabytes, and hold millions of records or headers: to walk over them takes seconds, and to
make objects of them takes more memory than there is. So:
- nothing is made of a record but a `RecordMark`, and what a batch may inflate to is capped;
- what is small is looked at in the callback that asks; anything larger is inflated in a thread and walked over in slices, between
  which all others have their turn;
- one large batch at a time is in memory, inflated.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from protocol.compression import decompress
from protocol.errors import ErrorCode, InvalidRecords, Malformed, OutputTooLarge
from protocol.record_set import RecordMark, walk_records
from protocol.records import ATTRIBUTES_POSITION, HEADER_BYTES, BatchHeader, parse_batch_header
from s3stream.objectstore import Buffer
from wal.checksum import crc32c

__all__ = ["AT_ONCE_BYTES", "MAX_INFLATED_BYTES", "KeyCheck", "RecordWalks", "check_keys"]

MAX_INFLATED_BYTES = 16 << 20
"""Cap on what a batch may inflate to where its records have to be looked at: sixteen times what the largest batch of the default
`message.max.bytes` holds. Clients bound what they put into a batch before they compress it."""

AT_ONCE_BYTES = 128 << 10
"""What is looked at without a pause: a millisecond for records of a hundred bytes, some five for the smallest."""

STEPS_AT_ONCE = 4096
"""Records and headers between two pauses: about a millisecond."""

MAX_LOOK_UP_STEPS = 500_000
"""Where the record at a time is not among so many, the batch as a whole is the answer: it is where a consumer would begin to look."""


def check_keys(batch: Buffer, header: BatchHeader) -> bool:
    """Whether all records of a small batch have a key; its CRC is checked first. False: it is too large to be looked at now.

    Raises:
        InvalidRecords: a record without a key, damage, or too much of it.
    """
    if len(batch) > AT_ONCE_BYTES:
        return False
    _check_crc(batch, header)
    try:
        data = decompress(header.codec, memoryview(batch)[HEADER_BYTES:], AT_ONCE_BYTES)
    except OutputTooLarge:
        return False
    except Malformed as error:
        raise _unreadable(error) from error
    try:
        if any(mark is not None and not mark.has_key for mark in walk_records(header, data)):
            raise _keyless()
    except Malformed as error:
        raise _unreadable(error) from error
    return True


class KeyCheck:
    """The check of a large batch."""

    __slots__ = ("_error", "done")

    def __init__(self) -> None:
        self.done = False
        self._error: Exception | None = None

    def verdict(self) -> None:
        """Return where every record has a key.

        Raises:
            InvalidRecords: see `check_keys`.
        """
        assert self.done
        if self._error is not None:
            raise self._error

    async def run(self, walks: RecordWalks, batch: bytes) -> None:
        """Come to a verdict."""
        header = parse_batch_header(batch)
        try:
            _check_crc(batch, header)
            if await walks.first(batch, lambda mark: not mark.has_key) is not None:
                self._error = _keyless()
        except InvalidRecords as error:
            self._error = error
        except Malformed as error:
            self._error = _unreadable(error)
        except Exception as error:  # a mistake of ours: told where the verdict is asked for
            self._error = error
        self.done = True


class RecordWalks:
    """The walks of one broker."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._checking: asyncio.Task[None] | None = None

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

    def check_keys(
        self, batch: Buffer, start_task: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    ) -> KeyCheck | None:
        """Begin to check a large batch, which is copied; None: another one is being checked, ask again after `checked`."""
        if self._checking is not None:
            return None
        check = KeyCheck()
        self._checking = task = start_task(check.run(self, bytes(batch)))
        task.add_done_callback(self._check_ended)
        return check

    def _check_ended(self, task: asyncio.Task[None]) -> None:
        self._checking = None

    @property
    def is_checking(self) -> bool:
        """Whether a large batch is being checked."""
        return self._checking is not None

    async def checked(self) -> None:
        """Return when the check that is under way has ended."""
        if self._checking is not None:
            await asyncio.wait((self._checking,))


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


def _keyless() -> InvalidRecords:
    return InvalidRecords(ErrorCode.INVALID_RECORD, "a compacted topic takes no record without a key")


def _unreadable(error: Malformed) -> InvalidRecords:
    return InvalidRecords(ErrorCode.CORRUPT_MESSAGE, f"the records of a batch cannot be read: {error}")
