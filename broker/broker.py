"""What every handler gets: the broker's parts, and the call that it answers. No logic of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from broker.config import BrokerSettings, Listener
from broker.delayed_fetch import WaitingFetches
from broker.fetch_session import FetchSessionCache
from broker.metadata_cache import MetadataCache
from broker.metrics import Metrics
from broker.partitions import Partitions
from broker.producer_ids import ProducerIds
from broker.record_walks import RecordWalks
from broker.topics import Topics
from controller.controller import Controller
from protocol.apis import encode_response
from protocol.messages.api_versions import ApiVersion
from s3stream.storage import Storage

__all__ = ["Broker", "Call"]


class Broker:
    """The parts of one broker. Made by `wiring`, of which there may be several in a process."""

    __slots__ = (
        "advertised",
        "api_versions",
        "cluster_id",
        "controller",
        "fetch_sessions",
        "metadata_cache",
        "metrics",
        "now_ms",
        "partitions",
        "producer_ids",
        "record_walks",
        "rng",
        "settings",
        "storage",
        "topics",
        "waiting_fetches",
    )

    def __init__(
        self,
        *,
        settings: BrokerSettings,
        cluster_id: str,
        controller: Controller,
        storage: Storage,
        topics: Topics,
        partitions: Partitions,
        producer_ids: ProducerIds,
        fetch_sessions: FetchSessionCache,
        metrics: Metrics,
        now_ms: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self.settings = settings
        self.cluster_id = cluster_id
        self.controller = controller
        self.storage = storage
        self.topics = topics
        self.partitions = partitions
        self.producer_ids = producer_ids
        self.fetch_sessions = fetch_sessions
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


class Call:
    """One request: what is needed to answer it."""

    __slots__ = ("api_key", "client_id", "correlation_id", "listener", "version")

    def __init__(
        self, api_key: int, version: int, correlation_id: int, client_id: str | None, listener: Listener
    ) -> None:
        self.api_key = api_key
        self.version = version
        self.correlation_id = correlation_id
        self.client_id = client_id
        self.listener = listener
        """Where the client came in."""

    def encode(self, response: Any) -> list[bytes | memoryview]:
        """The whole response frame, as parts."""
        return encode_response(self.api_key, self.version, self.correlation_id, response)
