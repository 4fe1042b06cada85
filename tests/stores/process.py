"""Object stores as processes: built by `make stores`, started on a free loopback port over a directory, stalled, killed,
started again over the same directory and port.

Always true:
- A store listens on the loopback interface only, and knows one pair of credentials.
- It is ready when a bucket could be created and an object put: a server that accepts connections may still refuse.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from tests.crash.process import free_port
from tests.stores.s3_server import ACCESS_KEY_ID, READER_ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server

__all__ = ["PROCESSES", "MinIO", "SeaweedFS", "StoreProcess", "StoreUnavailable", "ended_at_last"]

_BUILT = Path(__file__).parents[2] / "build" / "stores"
_READY_WITHIN_S = 120.0
_ENDED_WITHIN_S = 15.0
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Have the kernel end this process when who started it is gone, even by a signal that lets nobody clean up."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class StoreUnavailable(Exception):
    """The store is not built; the message says why, or how to build it."""


class StoreProcess:
    """One store's directory and port, and the process that serves them at the moment, if any."""

    name: str
    title: str
    program: str

    def __init__(self, directory: Path, port: int | None = None) -> None:
        self.directory = directory
        self.port = port or free_port()
        self.log_path = directory / "store.log"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def server(self) -> S3Server:
        """How it is used."""
        return S3Server(name=self.name, endpoint_url=f"http://127.0.0.1:{self.port}")

    @property
    def pid(self) -> int:
        """Of the process that serves it."""
        assert self._process is not None
        return self._process.pid

    def check(self) -> None:
        """Raise StoreUnavailable where it is not built."""
        target = _BUILT / self.name
        if (target / ".built").exists():
            return
        log = target / "build.log"
        reason = log.read_text(errors="replace").strip() if log.exists() else ""
        raise StoreUnavailable(f"{self.title} is not built: {reason.splitlines()[-1] if reason else 'make stores'}")

    def start(self) -> None:
        """Start it; see `wait_ready`."""
        assert self._process is None, "it runs already"
        (self.directory / "data").mkdir(exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [_BUILT / self.name / self.program, *self.arguments()],
                cwd=self.directory,
                env={"PATH": os.environ["PATH"], "HOME": str(self.directory), **self.environment()},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for who started it, which ends it in order
                preexec_fn=_die_with_parent,
            )

    def wait_ready(self) -> None:
        """Return once it takes objects.

        Raises:
            AssertionError: it ended instead, or took too long; with the end of its log.
        """
        assert self._process is not None
        deadline = time.monotonic() + _READY_WITHIN_S
        failure: Exception | None = None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise AssertionError(f"{self.title} ended with {self._process.returncode}:\n{self.log_tail()}")
            try:
                self.server.ensure_bucket("ready")
                self.server.client.put_object(Bucket="ready", Key="ready", Body=b"ready")
                return
            except (ClientError, BotoCoreError) as error:
                failure = error
            time.sleep(0.05)
        raise AssertionError(f"{self.title} takes no object: {failure}\n{self.log_tail()}")

    def pause(self) -> None:
        """SIGSTOP: it holds its connections, takes new ones, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, now."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """SIGTERM, and wait for its end; after a while SIGKILL."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(_ENDED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def wait(self) -> int:
        """Wait until it ends by itself; its exit status."""
        assert self._process is not None
        return self._process.wait()

    @property
    def running(self) -> bool:
        return self._process is not None

    def log_tail(self) -> str:
        """The end of what it printed."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-40:])

    def arguments(self) -> list[str]:
        """Of the command line."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What the program is told beside."""
        raise NotImplementedError


class MinIO(StoreProcess):
    """MinIO on one directory."""

    name = "minio"
    title = "MinIO"
    program = "minio"

    def arguments(self) -> list[str]:
        """See StoreProcess."""
        return ["server", str(self.directory / "data"), "--address", f"127.0.0.1:{self.port}", "--quiet"]

    def environment(self) -> dict[str, str]:
        """See StoreProcess."""
        return {
            "MINIO_ROOT_USER": ACCESS_KEY_ID,
            "MINIO_ROOT_PASSWORD": SECRET_ACCESS_KEY,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
        }


class SeaweedFS(StoreProcess):
    """SeaweedFS, all of it in one process: master, volume server, filer and S3 gateway."""

    name = "seaweedfs"
    title = "SeaweedFS"
    program = "weed"

    def __init__(self, directory: Path, port: int | None = None) -> None:
        super().__init__(directory, port)
        inner = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
        self._inner_ports = {name: free_port() for name in (*inner, "s3.port.grpc")}

    def arguments(self) -> list[str]:
        """See StoreProcess."""
        key = {"accessKey": READER_ACCESS_KEY_ID, "secretKey": SECRET_ACCESS_KEY}
        reader = {"name": "reader", "credentials": [key], "actions": ["Read", "List"]}
        (self.directory / "s3.json").write_text(json.dumps({"identities": [reader]}))
        settings = {
            "dir": self.directory / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "filer": "true",
            "s3": "true",
            "s3.port": self.port,
            **self._inner_ports,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.config": "s3.json",
            "s3.autoCreateBucket": "false",
            "s3.localSocket": "s3.sock",
            "filer.localSocket": "filer.sock",
            "master.telemetry": "false",
            "master.electionTimeout": "1s",  # of an electorate of one, which waits for it at each start but the first
            "master.heartbeatInterval": "100ms",
            "master.volumeSizeLimitMB": 256,
            "volume.max": 1000,
            "volume.preStopSeconds": 0,
        }
        return ["-v=0", "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in settings.items())]

    def kill(self) -> None:
        """See StoreProcess; removes the sockets that it makes in one place for all, whatever it is told."""
        super().kill()
        for name, port in self._inner_ports.items():
            Path(f"/tmp/seaweedfs-{name.split('.')[0]}-grpc-{port}.sock").unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        """See StoreProcess."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",  # volumes that a new bucket gets; seven by default
        }


PROCESSES: dict[str, type[StoreProcess]] = {"minio": MinIO, "seaweedfs": SeaweedFS}


@contextlib.contextmanager
def ended_at_last(store: StoreProcess) -> Iterator[StoreProcess]:
    """Leave no process behind, whatever happens."""
    try:
        yield store
    finally:
        if store.running:
            store.kill()
