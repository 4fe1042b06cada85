"""A stream as anybody but its holder reads it: what objects hold, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from s3stream.committed_stream import CommittedStream
from s3stream.errors import StreamClosed
from s3stream.metadata import StreamId

STREAM = StreamId(7)


class Objects:
    """Metadata and reader of one stream whose payloads have one offset each. `trims` are log starts that come while it is read."""

    def __init__(self, *, log_start_offset: int = 0, trims: list[int] | None = None) -> None:
        self.log_start: int | None = log_start_offset
        self.trims = trims or []
        self.asked: list[int] = []

    def log_start_offset(self, stream_id: StreamId) -> int | None:
        assert stream_id == STREAM
        return self.log_start

    async def read(self, stream_id: StreamId, offset: int, end_offset: int, max_bytes: int, **_: Any) -> list[bytes]:
        assert stream_id == STREAM
        self.asked.append(offset)
        if self.trims:
            self.log_start = self.trims.pop(0)
            return []
        return [b"%d" % each for each in range(offset, min(end_offset, offset + max_bytes))]


def stream(objects: Objects, *, end_offset: int = 10, gaps: tuple[tuple[int, int], ...] = ()) -> CommittedStream:
    return CommittedStream(
        stream_id=STREAM,
        leader_epoch=3,
        log_start_offset=objects.log_start or 0,
        committed_end_offset=end_offset,
        gaps=gaps,
        metadata=objects,  # type: ignore[arg-type]
        reader=objects,
    )


async def test_it_reads_up_to_the_committed_end() -> None:
    found = await stream(Objects()).read(8, 100)
    assert (list(found.buffers), found.size_bytes, found.block) == ([b"8", b"9"], 2, None)


@pytest.mark.parametrize("offset", [2, 10, 11])
async def test_what_objects_do_not_hold_is_the_holders_to_answer(offset: int) -> None:
    objects = Objects(log_start_offset=3)
    with pytest.raises(StreamClosed):
        await stream(objects).read(offset, 100)
    assert objects.asked == []


async def test_offsets_that_were_given_up_are_passed() -> None:
    objects = Objects()
    found = await stream(objects, gaps=((4, 6), (6, 8))).read(5, 1)
    assert list(found.buffers) == [b"8"]


async def test_a_trim_that_passes_the_offset_ends_the_read() -> None:
    with pytest.raises(StreamClosed):
        await stream(Objects(trims=[6])).read(5, 100)
    found = await stream(Objects(trims=[5])).read(5, 1)
    assert list(found.buffers) == [b"5"], "one that does not, does not"


async def test_a_stream_that_is_deleted_meanwhile_is_not_read_on() -> None:
    objects = Objects()
    one = stream(objects)
    objects.log_start = None
    with pytest.raises(StreamClosed):
        await one.read(5, 100)


def test_nothing_comes_here_and_nothing_is_cached() -> None:
    one = stream(Objects())
    assert one.read_cached(9, 100) is None
    assert one.confirmed_bytes_from(5) == 0
