"""Tasks that run beside the requests of a node for as long as it lives.

Always true: each is cancelled and awaited when the node stops. One that fails is reported once, and the node goes on without
it: what it does can wait until a restart, acknowledging records cannot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from s3stream.errors import NodeFenced

__all__ = ["Background"]

log = logging.getLogger("tidelog.background")


class Background:
    """An owner of tasks."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run work under a name for the log."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(_report)
        self._tasks.append(task)

    async def close(self) -> None:
        """Cancel and await everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()


def _report(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, NodeFenced):
        return  # the node stops: another process took its place
    if error is not None:
        log.error(
            "background work stopped until the next start: %(work)s; please report this",
            {"work": task.get_name()},
            exc_info=error,
        )
