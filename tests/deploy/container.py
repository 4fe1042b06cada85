"""Runs an image as a container would be: read-only but for its volumes, without rights, alone on its own network, as process 1."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.deploy.dockerfile import Image

__all__ = ["Container", "running"]

_NSENTER, _SETPRIV, _CHROOT = (shutil.which(name) or name for name in ("nsenter", "setpriv", "chroot"))

_SET_UP = """
import fcntl, os, socket, struct, sys
setpriv, chroot, root, uid, gid, directory, *command = sys.argv[1:]
with socket.socket() as one:  # an interface is up when its flags say so: SIOCSIFFLAGS, IFF_UP | IFF_RUNNING
    fcntl.ioctl(one, 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))
os.execv(setpriv, [setpriv, "--no-new-privs", chroot, f"--userspec={uid}:{gid}", "--groups=", root, *command])
"""

READY_WITHIN_S = 90.0
STOPPED_WITHIN_S = 60.0


class Container:
    """A process of an image, and what can be asked of it."""

    def __init__(self, image: Image, process: subprocess.Popen[str], log: Path) -> None:
        self.image = image
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Of the process that is number 1 inside."""
        children = self._children()
        assert children, self.log()
        return int(children[0])

    def _children(self) -> list[str]:
        return Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()

    def log(self) -> str:
        """What it has written."""
        return self._log.read_text(errors="replace")

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the image in it, as a health check is."""
        uid, _, gid = self.image.user.partition(":")
        return subprocess.run(
            [_NSENTER, f"--target={self.pid}", "--all", "--root", f"--setuid={uid}", f"--setgid={gid}", *command],
            env=self.image.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def beside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine on the container's network, as a client is."""
        return subprocess.run(
            [_NSENTER, f"--target={self.pid}", "--net", *command], capture_output=True, text=True, timeout=90
        )

    def wait_healthy(self) -> None:
        """Return when the image's health check succeeds."""
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"it ended with {self._process.returncode}:\n{self.log()}"
            if self._children() and self.inside(*self.image.healthcheck).returncode == 0:
                return
            time.sleep(0.2)
        raise AssertionError(f"its health check does not succeed:\n{self.log()}")

    def stop(self) -> int:
        """The image's stop signal, and its end."""
        os.kill(self.pid, signal.Signals[self.image.stop_signal])
        return self._process.wait(STOPPED_WITHIN_S)


@contextlib.contextmanager
def running(image: Image, work: Path, environment: Mapping[str, str]) -> Iterator[Container]:
    """An image's own program in namespaces of its own. Its volumes, and /tmp, are new and empty; all else is read-only."""
    root = str(image.root)
    uid, _, gid = image.user.partition(":")
    volumes = [
        f"mount -t tmpfs -o uid={uid if path != '/tmp' else 0},mode={'1777' if path == '/tmp' else '0750'} none {root}{path}"
        for path in ("/tmp", *image.volumes)
    ]
    script = " && ".join(
        [
            f"mount --bind {root} {root}",
            f"mount -t proc proc {root}/proc",
            *volumes,
            f"mount -o remount,bind,ro {root}",
            'exec "$@"',
        ]
    )
    log = work / "container.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh"),
                *(
                    sys.executable,
                    "-c",
                    _SET_UP,
                    _SETPRIV,
                    _CHROOT,
                    root,
                    uid,
                    gid,
                    image.directory,
                    *image.entrypoint,
                    *image.command,
                ),
            ],
            env={**image.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            text=True,
        )
    try:
        yield Container(image, process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
