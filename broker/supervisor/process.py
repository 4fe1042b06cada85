"""One node in a process of its own, as its supervisor sees it: started, told to stop, killed, and awaited.

Always true:
- It does not outlive its supervisor: it stops, in order, when its link ends.
- Signals to the whole group of processes (Ctrl-C) are the supervisor's business: a node has a session of its own.
- It is told all its settings when it is started: what a file or the environment say later changes nothing in one node alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

import broker
from broker.config import ENVIRONMENT_PREFIX, SETTINGS, BrokerSettings
from broker.supervisor.link import STOP, Serving

__all__ = ["NodeProcess", "cause"]


class NodeProcess:
    """Made with `start`."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, settings: BrokerSettings) -> NodeProcess:
        """Start a node. Raises OSError."""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *_command(settings, theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env=_environment(),
                )
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            undo.pop_all()
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def serving(self) -> Serving | None:
        """Return when the node serves; None: it ended instead."""
        with contextlib.suppress(ConnectionError):
            line = await self._reader.readline()
            if line:
                return msgspec.json.decode(line, type=Serving)
        return None

    def stop(self) -> None:
        """Have it stop in order, with all others; it gives no partitions away."""
        self._writer.write(STOP)

    def kill(self) -> None:
        """SIGKILL, now."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> int:
        """Return its status when it has ended; minus the signal that killed it."""
        status = await self._process.wait()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        return status


def cause(status: int) -> str:
    """In words, how a process ended."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"status {status}" if status else "stopped in order"


def _command(settings: BrokerSettings, link: int) -> list[str]:
    """A command line that says all that is not as by default; it can be read in the list of processes."""
    command = [sys.executable, "-P", "-m", "broker", "serve", "--link", str(link)]
    for name, setting in SETTINGS.items():
        value = getattr(settings, name.replace(".", "_"))
        if value != setting.default:
            command += ["--set", f"{name}={setting.text(value)}"]
    return command


def _environment() -> dict[str, str]:
    """Ours, but for settings, which are on the command line; and our own packages, wherever they were loaded from."""
    home = str(Path(broker.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    others = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    return {**others, "PYTHONPATH": path}
