"""A pytest plugin: the fixture `tidelog` gives tests a real broker of their own.

    def test_orders(tidelog):
        producer = confluent_kafka.Producer({"bootstrap.servers": tidelog.bootstrap_servers})

Always true:
- The broker runs on an event loop of its own, in a thread of its own: tests may be synchronous or asynchronous, and
  may block. It listens on an ephemeral port of the loopback interface and keeps its data in the test's `tmp_path`.
- Every test has its own; it is stopped, and what it failed with is raised, at the end of the test.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from broker.node import Node
    from s3stream.instrumented import InstrumentedObjectStore

__all__ = ["TidelogServer", "tidelog"]

T = TypeVar("T")

STOP_TIMEOUT_S = 30.0
"""A broker that has not stopped by then is stuck, and the test fails."""


class TidelogServer:
    """A broker in a thread. `start` and `stop` may be called again: the data stays, as over a restart of a process."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        """Take a directory for WAL and objects, and settings by field name (`num_partitions=3`) over small defaults."""
        self._directory = directory
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._node: Node | None = None
        self._stop: asyncio.Event | None = None
        self._port = 0

    @property
    def bootstrap_servers(self) -> str:
        """`host:port` for clients; the same after a restart."""
        return self.node.bootstrap_servers

    @property
    def node(self) -> Node:
        """The node itself. It belongs to another thread: see `call`."""
        assert self._node is not None, "the broker is not running"
        return self._node

    @property
    def object_store(self) -> InstrumentedObjectStore:
        """The broker's object store, with switches that may be set from any thread: `failing`, `delay_ms`, `bytes_per_s`."""
        return self.node.running.store

    def start(self) -> None:
        """Start the broker. Raises what the broker raises when it cannot."""
        from broker.config import BrokerSettings

        values: dict[str, Any] = {
            "wal_uri": f"{(self._directory / 'wal').absolute().as_uri()}?capacity=64MiB",
            "object_store_uri": (self._directory / "objects").absolute().as_uri(),
            "memory_bytes": 128 << 20,
            "upload_size_bytes": 4 << 20,
            "upload_interval_ms": 500,
            "group_initial_rebalance_delay_ms": 0,
            "shutdown_timeout_ms": 3_000,  # a test that leaves the object store failing is not to wait for it
            "compaction_process_enable": False,  # so that `object_store` sees all requests
            "listeners": f"PLAINTEXT://127.0.0.1:{self._port}",
            **self._settings,
        }
        settings = BrokerSettings(**values)
        started = threading.Event()
        failure: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(self._serve(settings, started))
            except BaseException as error:
                failure.append(error)
            finally:
                started.set()

        self._failure = failure
        self._thread = threading.Thread(target=run, name="tidelog", daemon=True)
        self._thread.start()
        started.wait()
        self._raise_failure()
        self._port = self.node.listeners[0].port

    def stop(self) -> None:
        """Stop the broker in good order. Raises what it failed with."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        thread.join(STOP_TIMEOUT_S)
        if thread.is_alive():
            raise TimeoutError(f"the broker did not stop within {STOP_TIMEOUT_S} s")
        self._raise_failure()

    def restart(self) -> None:
        """Stop and start again: what was acknowledged is still there, caches are empty."""
        self.stop()
        self.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the broker's event loop and wait for its result."""
        assert self._loop is not None, "the broker is not running"
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _serve(self, settings: Any, started: threading.Event) -> None:
        from broker.node import Node

        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with Node(settings) as node:
            self._node = node
            started.set()
            await self._stop.wait()
        self._node = None

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure.pop()


@pytest.fixture
def tidelog(tmp_path: Path) -> Iterator[TidelogServer]:
    """A running broker with its data in `tmp_path`."""
    server = TidelogServer(tmp_path / "tidelog")
    server.start()
    yield server
    server.stop()
