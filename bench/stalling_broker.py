"""`python -m bench.stalling_broker serve -c FILE`: a broker whose object store can be taken away and given back.

SIGUSR1 makes every call of the store wait, SIGUSR2 lets them go on; SIGTERM stops the broker in order. It is an
embedded `Node` with a wrapper around its store; all else is as in `tidelog serve`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from bench.broker import run_program
from broker.config import settings_from
from broker.node import Node
from s3stream.objectstore import ObjectStore

__all__ = ["StallingStore"]


class StallingStore:
    """Passes every call on, but not while stalled."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._open = asyncio.Event()
        self._open.set()

    def stall(self) -> None:
        self._open.clear()

    def go_on(self) -> None:
        self._open.set()

    @property
    def uri(self) -> str:
        return self._store.uri

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Any]:
        await self._open.wait()
        async for summary in self._store.list(prefix, start_after=start_after):
            yield summary

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._store, name)

        async def when_open(*args: Any, **kwargs: Any) -> Any:
            await self._open.wait()
            return await call(*args, **kwargs)

        return when_open


async def _serve(config: Path) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    stores: list[StallingStore] = []

    def wrap(store: ObjectStore) -> ObjectStore:
        stores.append(StallingStore(store))
        return stores[-1]  # type: ignore[return-value]

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    async with Node(settings_from(file=config), wrap_store=wrap):
        [store] = stores
        loop.add_signal_handler(signal.SIGUSR1, store.stall)
        loop.add_signal_handler(signal.SIGUSR2, store.go_on)
        await stop.wait()


if __name__ == "__main__":
    sys.exit(run_program("bench.stalling_broker", _serve))
