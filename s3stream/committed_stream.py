"""A stream that another node holds, as far as objects hold it: read-only, from the committed metadata alone.

Always true:
- Offsets from the log start to the committed end are read, as this node knows them; what comes after is the holder's to answer.
- It says nothing of the stream's high watermark, which only the holder knows; the committed end is below it.
- Nothing waits here for more: whoever reads to the end is done.
"""

from __future__ import annotations

from s3stream.errors import StreamClosed
from s3stream.log_cache import MAX_PAYLOADS, TailRead
from s3stream.metadata import StreamId, StreamMetadata, past_gaps
from s3stream.storage import ColdReader
from s3stream.stream import READ_ATTEMPTS, StreamRead

__all__ = ["CommittedStream"]


class CommittedStream:
    """What `Stream` is to its holder, for one read by anybody else."""

    __slots__ = (
        "_metadata",
        "_reader",
        "confirmed_offset",
        "gaps",
        "leader_epoch",
        "log_start_offset",
        "stream_id",
        "withheld",
    )

    def __init__(
        self,
        *,
        stream_id: StreamId,
        leader_epoch: int,
        log_start_offset: int,
        committed_end_offset: int,
        gaps: tuple[tuple[int, int], ...],
        metadata: StreamMetadata,
        reader: ColdReader,
    ) -> None:
        self.stream_id = stream_id
        self.leader_epoch = leader_epoch
        self.log_start_offset = log_start_offset
        self.confirmed_offset = committed_end_offset
        """Exclusive end of what can be read here."""
        self.gaps = gaps
        self.withheld: StreamClosed | None = None
        self._metadata = metadata
        self._reader = reader

    def past_gap(self, offset: int) -> int:
        """The offset itself, or, where it was given up, the first one after it that was not."""
        return past_gaps(self.gaps, offset)

    def confirmed_bytes_from(self, offset: int) -> int:
        """Nothing arrives here."""
        return 0

    def read_cached(self, offset: int, max_bytes: int, max_payloads: int = MAX_PAYLOADS) -> TailRead | None:
        """The log cache is the holder's."""
        return None

    async def read(
        self, offset: int, max_bytes: int, *, wait_for_memory: bool = True, paced: bool = True
    ) -> StreamRead:
        """Read whole payloads from the one that holds `offset` on; at least one, about `max_bytes`.

        Raises:
            StreamClosed: there is nothing at this offset in objects (any more): its holder is to be asked.
            ObjectCorrupt, Unavailable: the objects that hold it cannot be trusted or reached.
            NoMemory: others hold the memory for reads.
        """
        for _ in range(READ_ATTEMPTS):
            log_start_offset = self._metadata.log_start_offset(self.stream_id)
            if log_start_offset is None or not log_start_offset <= offset < self.confirmed_offset:
                break
            buffers = await self._reader.read(
                self.stream_id,
                self.past_gap(offset),
                self.confirmed_offset,
                max_bytes,
                wait_for_memory=wait_for_memory,
                paced=paced,
            )
            if buffers:
                return StreamRead(buffers, sum(map(len, buffers)), None)
            # A trim passed the offset while we read.
        raise StreamClosed(f"stream {self.stream_id} has nothing at {offset} in objects")
