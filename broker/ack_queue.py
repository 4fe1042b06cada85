"""Produce requests of one connection that are not answered yet, in order.

Theory of operation. The storage engine calls back once per appended batch, in append order among all streams; so also in
order among the batches of one connection. Its `done` therefore needs no argument that names the batch: it is always the
oldest one outstanding. That saves a closure, a future or a task per request on the hottest path.

Always true:
- `_unanswered` holds every request that gets a response, in request order; responses leave from its front only.
- `_appending` holds every request with batches that are not done, in append order; those in front may be finished.
- A duplicate batch waits for its original outside this order (`wait_duplicate`).
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from broker.errors import code_of
from broker.refused_batches import RefusedBatches
from protocol.apis import encode_response
from protocol.messages.produce import NodeEndpoint, PartitionProduceResponse, ProduceResponse, TopicProduceResponse

if TYPE_CHECKING:
    from broker.arrivals import Arrival
    from broker.connection import Connection
    from broker.record_walks import BatchTreatment

__all__ = ["AckQueue", "PendingProduce", "encode_single"]

_PRODUCE_KEY = 0
_FLEXIBLE_SINCE = 9

# The answer to one batch of one partition, v9 and later: compact lengths are n + 1, tags and null one zero byte.
_SINGLE_HEAD = struct.Struct(">iibBB").pack  # size, correlation id, tags, topics, length of the name
_SINGLE_HEAD_BYTES = 7  # without the size
_SINGLE_TAIL = struct.Struct(">BihqqqBBBBiB").pack
# partitions, index, error, base offset, append time, log start, record errors, message, tags, tags, throttle, tags
_SINGLE_TAIL_BYTES = struct.calcsize(">BihqqqBBBBiB")
_LONGEST_NAME = 126


class PendingProduce:
    """One Produce request."""

    __slots__ = (
        "appended",
        "correlation_id",
        "done",
        "has_waited",
        "node_endpoints",
        "outstanding",
        "parked",
        "resume_at",
        "started",
        "submitted",
        "topics",
        "treatment",
        "version",
    )

    def __init__(self, version: int, correlation_id: int, started: float) -> None:
        self.started = started
        """When it was first looked at, by the clock of `Metrics`."""
        self.version = version
        self.correlation_id = correlation_id
        self.topics: list[TopicProduceResponse] = []
        self.appended: list[PartitionProduceResponse] = []
        """Responses of the batches that were appended, in that order."""
        self.done = 0
        """How many of them are done."""
        self.outstanding = 0
        """Batches, duplicates included, that are not done."""
        self.submitted = False
        """Every partition was seen; False while the request waits for room in the log."""
        self.resume_at = 0
        """Partitions seen so far: where to go on when there is room again."""
        self.node_endpoints: list[NodeEndpoint] = []
        """Where the brokers are that refused batches should go to."""
        self.parked: Arrival | None = None
        """It waits for a partition that is about to be served here, not for room in the log."""
        self.has_waited = False
        """It did so before; once is enough."""
        self.treatment: BatchTreatment | None = None
        """Of the batch to go on with, where it takes long to look into it."""


class AckQueue:
    """See the module."""

    __slots__ = ("_appending", "_connection", "_unanswered", "refused", "stalled")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unanswered: deque[PendingProduce] = deque()
        self._appending: deque[PendingProduce] = deque()
        self.stalled: PendingProduce | None = None
        """The request that waits for room in the log, half submitted; its frame is the next in the receive buffer."""
        self.refused = RefusedBatches()

    @property
    def pending(self) -> bool:
        """Whether a response is owed."""
        return bool(self._unanswered)

    def add(self, request: PendingProduce) -> None:
        """Take a request that is about to be submitted."""
        self._unanswered.append(request)
        self._appending.append(request)

    def submitted(self, request: PendingProduce) -> None:
        """The request is whole; it is answered when its last batch is done."""
        request.submitted = True
        if not request.outstanding:
            self._mark()

    def done(self, error: BaseException | None) -> None:
        """The oldest outstanding batch is durable, or never will be acknowledged (an `OnDone` of the storage engine)."""
        appending = self._appending
        request = appending[0]
        while request.done == len(request.appended):
            appending.popleft()
            request = appending[0]
        if error is not None:
            self._fail(request.appended[request.done], error)
        request.done += 1
        request.outstanding -= 1
        if not request.outstanding and request.submitted:
            self._mark()

    def wait_duplicate(
        self, request: PendingProduce, response: PartitionProduceResponse
    ) -> Callable[[BaseException | None], None]:
        """A batch repeats one that is not durable yet: call the result when that one is done."""
        request.outstanding += 1

        def original_done(error: BaseException | None) -> None:
            if error is not None:
                self._fail(response, error)
            request.outstanding -= 1
            if not request.outstanding and request.submitted:
                self._mark()

        return original_done

    def take_ready(self, out: list[bytes | memoryview]) -> None:
        """Encode the responses that are ready, in order."""
        unanswered = self._unanswered
        if not unanswered:
            return
        metrics = self._connection.server.metrics
        duration = metrics.produce.duration
        bounds, counts = duration.bounds, duration.counts
        now = metrics.clock()
        started, elapsed, at = 0.0, 0.0, -1
        while unanswered and unanswered[0].submitted and not unanswered[0].outstanding:
            request = unanswered.popleft()
            if request.started != started or at < 0:  # those that came in together went out together, as a rule
                started = request.started
                elapsed = now - started
                at = bisect_left(bounds, elapsed)
            counts[at] += 1
            duration.total += elapsed
            version = request.version
            frame = encode_single(request.correlation_id, request.topics) if version >= _FLEXIBLE_SINCE else None
            if frame is not None:
                out.append(frame)
            else:
                response = ProduceResponse(responses=request.topics, node_endpoints=request.node_endpoints)
                out.extend(encode_response(_PRODUCE_KEY, version, request.correlation_id, response))

    def _fail(self, response: PartitionProduceResponse, error: BaseException) -> None:
        code = code_of(error)
        self._connection.server.metrics.produce.errors[code] += 1
        response.error_code = code
        response.base_offset = -1
        response.log_append_time_ms = -1
        response.error_message = str(error)

    def _mark(self) -> None:
        connection = self._connection
        if not connection.flush_scheduled:
            connection.flush_scheduled = True
            connection.server.mark(connection)


def encode_single(correlation_id: int, topics: list[TopicProduceResponse]) -> bytes | None:
    """The frame that `encode_response` gives from v9 on where one batch was appended, at a quarter of its cost.

    None for everything else: several partitions, an error, a topic name whose length takes two bytes.
    """
    if len(topics) != 1 or len(topics[0].partition_responses) != 1:
        return None
    name = topics[0].name.encode()
    answer = topics[0].partition_responses[0]
    if answer.error_code or len(name) > _LONGEST_NAME:
        return None
    return (
        _SINGLE_HEAD(_SINGLE_HEAD_BYTES + len(name) + _SINGLE_TAIL_BYTES, correlation_id, 0, 2, len(name) + 1)
        + name
        + _SINGLE_TAIL(
            2, answer.index, 0, answer.base_offset, answer.log_append_time_ms, answer.log_start_offset, 1, 0, 0, 0, 0, 0
        )
    )
