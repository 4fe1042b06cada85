"""A controller for a tool: one that gives a command or two, beside brokers or instead of them, and goes.

Always true: it takes no snapshots. They raise the floor and delete what is below, for which a broker's settings count, and a tool may
have been started without them.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from broker.inspect.bucket import PATIENCE_MS
from broker.node import wall_clock_ms
from controller.config import ControllerSettings
from controller.controller import Controller
from s3stream.config import ObjectStoreSettings
from s3stream.open import open_object_store

__all__ = ["PATIENCE", "open_controller"]

PATIENCE: Final = ObjectStoreSettings(request_timeout_ms=PATIENCE_MS // 3, deadline_ms=PATIENCE_MS)
"""A person waits."""

_NEVER: Final = 1 << 62


@asynccontextmanager
async def open_controller(uri: str, *, cluster_id: str, rng: random.Random) -> AsyncIterator[Controller]:
    """Start a controller on a bucket, and close it at the end of the block. Raises what `Controller.start` does."""
    store, paths = open_object_store(uri, rng=rng, settings=PATIENCE)
    try:
        controller = await Controller.start(
            store=store,
            paths=paths,
            settings=ControllerSettings(
                cluster_id=cluster_id,
                start_timeout_ms=2 * PATIENCE_MS,
                command_timeout_ms=2 * PATIENCE_MS,
                snapshot_interval_entries=_NEVER,
                snapshot_interval_bytes=_NEVER,
            ),
            now_ms=wall_clock_ms,
            rng=rng,
        )
        try:
            yield controller
        finally:
            await controller.close()
    finally:
        await store.close()
