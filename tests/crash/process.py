"""A real broker process for tests: started, killed, started again over the same directory and port."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["BrokerProcess", "free_port", "killed_at_last"]

_READY_WITHIN_S = 90.0
_STOPPED_WITHIN_S = 60.0
_LINUX_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT = 10_000


class BrokerProcess:
    """One broker's directory and port, and the process that serves them at the moment, if any."""

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, object],
        *,
        environment: Mapping[str, str] | None = None,
        port: int | None = None,
        program: str = "broker",
    ) -> None:
        self.directory = directory
        self.environment = {**os.environ, **(environment or {})}
        self.port = free_port() if port is None else port
        self._program = program
        self.code: Path | None = None
        """Where the packages are loaded from at the next start, if not from here."""
        self.log_path = directory / "broker.log"
        self.config = directory / "broker.toml"
        self._arming_file = directory / "armed"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.settings = everything = {"listeners": f"PLAINTEXT://127.0.0.1:{self.port}", **settings}
        self.config.write_text("".join(f'"{name}" = {json.dumps(value)}\n' for name, value in everything.items()))

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, crash_point: str | None = None) -> None:
        """Start it; see `wait_ready`. A `crash_point` works once `arm` was called."""
        assert self._process is None, "it runs already"
        self._arming_file.unlink(missing_ok=True)
        program = (
            [self._program] if crash_point is None else ["tests.crash.launch", crash_point, str(self._arming_file)]
        )
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *program, "serve", "-c", str(self.config)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                cwd=self.code,  # comes first among the places of modules
            )

    def wait_ready(self) -> None:
        """Return once it accepts connections.

        Raises:
            AssertionError: it ended instead, or took too long; with the end of its log.
        """
        assert self._process is not None
        deadline = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise AssertionError(f"the broker ended with {self._process.returncode}:\n{self.log_tail()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise AssertionError(f"the broker accepts no connection:\n{self.log_tail()}")

    def arm(self) -> None:
        """Kill it at its crash point, the next time that it gets there."""
        self._arming_file.touch()

    def kill(self) -> None:
        """SIGKILL, now."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def has_ended(self) -> bool:
        """Whether the process is gone, by whatever cause."""
        assert self._process is not None
        return self._process.poll() is not None

    def wait_killed(self, timeout_s: float) -> None:
        """Return when it has died by SIGKILL, as a crash point makes it."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not reach its crash point in {timeout_s} s:\n{self.log_tail()}") from None
        assert code == -signal.SIGKILL, f"the broker ended with {code} and not by SIGKILL:\n{self.log_tail()}"
        self._process = None

    def stop(self) -> None:
        """SIGTERM, and wait for its orderly end."""
        assert self._process is not None
        self._process.terminate()
        try:
            code = self._process.wait(_STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the broker did not stop on SIGTERM:\n{self.log_tail()}") from None
        self._process = None
        assert code == 0, f"the broker ended with {code}:\n{self.log_tail()}"

    @property
    def running(self) -> bool:
        return self._process is not None

    def log_tail(self) -> str:
        """The end of what it printed."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-40:])


@contextlib.contextmanager
def killed_at_last(broker: BrokerProcess) -> Iterator[BrokerProcess]:
    """Leave no process behind, whatever happens."""
    try:
        yield broker
    finally:
        if broker.running:
            broker.kill()


def free_port() -> int:
    """A port that nobody listens on, and that the system gives to no connection: one that is to be listened on again after a restart stays free."""
    while True:
        port = random.randrange(_FIRST_PORT, _first_of_connections())
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # somebody listens there
                probe.bind(("127.0.0.1", port))
                return port


def _first_of_connections() -> int:
    """The first of the ports that the system gives to connections; RFC 6335 has them begin at 49152, Linux says so itself."""
    try:
        return max(int(_LINUX_PORTS.read_text().split()[0]), _FIRST_PORT + 1_000)
    except FileNotFoundError:
        return 49_152
