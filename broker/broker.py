"""What every handler gets: the broker's parts, and the call that it answers. No logic of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from broker.addresses import Listener
from broker.arrivals import Arrivals
from broker.config import BrokerSettings
from broker.config_layers import SettingsLayers
from broker.delayed_fetch import WaitingFetches
from broker.error_codes import error_counter
from broker.fetch_session import FetchSessionCache
from broker.groups.coordinator import GroupCoordinator
from broker.handover import Handover
from broker.metadata_cache import MetadataCache
from broker.metrics import ApiMetrics, Metrics
from broker.partitions import Partitions
from broker.producer_ids import ProducerIds
from broker.record_walks import RecordWalks
from broker.topics import Topics
from broker.zone_reads import ZoneReads
from controller.controller import Controller
from controller.lease import Serving
from protocol.apis import encode_response
from protocol.messages.api_versions import ApiVersion
from s3stream.storage import Storage

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["Broker", "Call", "answer_later"]


class Broker:
    """The parts of one broker. Made by `wiring`, of which there may be several in a process."""

    __slots__ = (
        "advertised",
        "api_versions",
        "arrivals",
        "cluster_id",
        "controller",
        "fetch_sessions",
        "groups",
        "handover",
        "layers",
        "metadata_cache",
        "metrics",
        "now_ms",
        "object_store_uri",
        "partitions",
        "producer_ids",
        "record_walks",
        "rng",
        "serving",
        "storage",
        "topics",
        "waiting_fetches",
        "zone_reads",
    )

    def __init__(
        self,
        *,
        layers: SettingsLayers,
        object_store_uri: str,
        cluster_id: str,
        controller: Controller,
        storage: Storage,
        topics: Topics,
        partitions: Partitions,
        handover: Handover,
        arrivals: Arrivals,
        producer_ids: ProducerIds,
        fetch_sessions: FetchSessionCache,
        groups: GroupCoordinator,
        zone_reads: ZoneReads,
        serving: Serving,
        metrics: Metrics,
        now_ms: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self.layers = layers
        """Settings, and where they come from; replaced when some are altered."""
        self.object_store_uri = object_store_uri
        self.cluster_id = cluster_id
        self.controller = controller
        self.storage = storage
        self.topics = topics
        self.partitions = partitions
        self.handover = handover
        self.arrivals = arrivals
        self.producer_ids = producer_ids
        self.fetch_sessions = fetch_sessions
        self.groups = groups
        self.zone_reads = zone_reads
        self.serving = serving
        """Asked before anything is told that could be stale, or taken."""
        self.waiting_fetches = WaitingFetches()
        self.record_walks = RecordWalks()
        self.metadata_cache = MetadataCache()
        self.metrics = metrics
        self.now_ms = now_ms
        self.rng = rng
        self.api_versions: list[ApiVersion] = []
        """What is served; the dispatcher's table says."""
        self.advertised: dict[str, Listener] = {}
        """What clients are told, by listener name; known when the sockets are bound."""

    @property
    def settings(self) -> BrokerSettings:
        """What holds now."""
        return self.layers.current


class Call:
    """One request: what is needed to answer it."""

    __slots__ = ("_clock", "_metrics", "api_key", "client_id", "correlation_id", "listener", "started", "version")

    def __init__(
        self,
        api_key: int,
        version: int,
        correlation_id: int,
        client_id: str | None,
        listener: Listener,
        metrics: ApiMetrics,
        clock: Callable[[], float],
        started: float,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self.started = started
        """When it arrived; what it waits for by its client's wish is added."""
        self.api_key = api_key
        self.version = version
        self.correlation_id = correlation_id
        self.client_id = client_id
        self.listener = listener
        """Where the client came in."""

    def encode(self, response: Any) -> list[bytes | memoryview]:
        """The whole response frame, as parts, of a request that is answered with this."""
        count = error_counter(self.api_key)
        if count is not None:
            count(response, self._metrics.errors)
        return self.encode_counted(response)

    def encode_counted(self, response: Any) -> list[bytes | memoryview]:
        """`encode` for a handler that counts the errors in its response by itself, with `count_error`."""
        self.answered()
        return encode_response(self.api_key, self.version, self.correlation_id, response)

    def count_error(self, code: int) -> None:
        """An error code is part of the answer."""
        self._metrics.errors[code] += 1

    def answered(self) -> None:
        """Note how long it took; for a handler that has a frame already."""
        self._metrics.duration.observe(self._clock() - self.started)


def answer_later(connection: Connection, call: Call) -> Callable[[Any], None]:
    """The request's answer is given by calling the result with the response, now or later, once."""
    connection.begin(_nothing)

    def answer(response: Any) -> None:
        connection.finish(call.encode(response))

    return answer


def _nothing() -> None:
    """The client is gone: what waits for its request goes on without it, as in Kafka."""
