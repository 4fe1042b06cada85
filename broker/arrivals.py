"""Requests for a partition that is about to be served here wait a moment for it, instead of being refused.

A client learns of a partition's next broker from the one before, which may be sooner than that broker itself has opened it. To be
refused then would cost the client a round of metadata and its back-off, several times what opening takes.

Always true:
- Who waits is woken when the partition is here, or after `PATIENCE_S`; then it is served, or refused as it would have been.
- What waits holds nothing but its place: a Produce request stays in its connection's receive buffer, within that one's bounds, and its
  socket is not read meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from broker.topics import Topic
    from s3stream.metadata import StreamId

Wanted = Iterable[tuple["Topic | None", int]]
"""Partitions by topic, if there is such a one, and index."""

__all__ = ["PATIENCE_S", "Arrival", "Arrivals"]

PATIENCE_S: Final = 1.0
"""Opening takes tenths of a second, and seconds where the object store is slow: then clients may as well look elsewhere."""


class Arrival:
    """Somebody who waits for a partition."""

    __slots__ = ("_arrivals", "_stream_id", "_timer", "_wake")

    def __init__(self, arrivals: Arrivals, stream_id: StreamId, wake: Callable[[bool], None]) -> None:
        self._arrivals = arrivals
        self._stream_id = stream_id
        self._wake: Callable[[bool], None] | None = wake
        self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self.end, False)

    def end(self, in_time: bool) -> None:
        """It is here, or it took too long: wake who waits, and say which."""
        wake = self._wake
        self.cancel()
        if wake is not None:
            wake(in_time)

    def cancel(self) -> None:
        """Nobody waits any more."""
        if self._wake is not None:
            self._wake = None
            self._timer.cancel()
            self._arrivals.forget(self._stream_id, self)


class Arrivals:
    """Who waits for what."""

    def __init__(self, node_id: int) -> None:
        self._node_id = node_id
        self._waiting: dict[StreamId, dict[Arrival, None]] = {}
        self.waited = 0
        """Requests that had to wait, since start."""

    def expects(self, topic: Topic, index: int) -> bool:
        """Whether a partition is to be served here, and is not yet."""
        partition = topic.partitions[index]
        if partition is not None:
            return partition.is_loading
        if index in topic.offline:
            return False
        state = topic.info.partitions[index]
        return self._node_id in (state.leader, state.target)

    def wait(self, topic: Topic, index: int, wake: Callable[[bool], None]) -> Arrival:
        """Have `wake` called once: with True when an expected partition is here, with False when time is up; unless it is cancelled before."""
        self.waited += 1
        stream_id = topic.info.partitions[index].stream_id
        arrival = Arrival(self, stream_id, wake)
        self._waiting.setdefault(stream_id, {})[arrival] = None
        return arrival

    def any_of(self, wanted: Wanted, *, loaded: bool) -> bool:
        """Whether one of the named partitions is expected; `loaded`: also where it is here, and its state is not."""
        return any(self._is_expected(topic, index, loaded=loaded) for topic, index in wanted)

    async def settle(self, wanted: Wanted, *, loaded: bool) -> None:
        """Return when those of the named partitions that are expected are here, or time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                for topic, index in wanted:
                    while topic is not None and self._is_expected(topic, index, loaded=loaded):
                        await self._wait_once(topic, index)

    def _is_expected(self, topic: Topic | None, index: int, *, loaded: bool) -> bool:
        if topic is None or not 0 <= index < len(topic.partitions):
            return False
        return (loaded or topic.partitions[index] is None) and self.expects(topic, index)

    async def _wait_once(self, topic: Topic, index: int) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        arrival = self.wait(topic, index, lambda in_time: None if woken.done() else woken.set_result(None))
        try:
            await woken
        finally:
            arrival.cancel()

    def arrived(self, stream_id: StreamId) -> None:
        """A partition is here: opened, or ready for producers as well. Who is not content with that waits again."""
        for arrival in list(self._waiting.get(stream_id, ())):
            arrival.end(True)

    def forget(self, stream_id: StreamId, arrival: Arrival) -> None:
        """Somebody waits no more."""
        waiting = self._waiting.get(stream_id)
        if waiting is not None:
            waiting.pop(arrival, None)
            if not waiting:
                del self._waiting[stream_id]
