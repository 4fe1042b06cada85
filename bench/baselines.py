"""What the machine itself can do, measured with as little program as possible: the other half of every ratio.

Always true:
- Each baseline does the same system calls as the part of the broker it stands beside, and nothing else.
- The far end runs in a process of its own, as a client does, and both ends have a core of their own, as broker and load do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.cpu import CLIENT_CORE, SERVER_CORE, kept_on
from bench.load import BLOB_BYTES, RECEIVE_BYTES, round_trips

__all__ = [
    "BaselineUnavailable",
    "fio_dsync",
    "loopback_bytes_per_s",
    "loopback_round_trip_us",
]

_FIO_FILE_BYTES = 1 << 30
_STREAM_CHUNK_BYTES = 1 << 20


class BaselineUnavailable(Exception):
    """A tool that a baseline needs is missing; the message says which."""


def fio_dsync(directory: Path, *, block_size_bytes: int, seconds: float) -> dict[str, float]:
    """Sequential O_DIRECT|O_DSYNC writes at depth 1 over a file that is already there, as the WAL's ring is.

    Returns bytes_per_s and p50_us.
    """
    if shutil.which("fio") is None:
        raise BaselineUnavailable("fio is needed: apt-get install fio")
    path = directory / "fio.ring"
    if not path.exists() or path.stat().st_size != _FIO_FILE_BYTES:
        zeros = bytes(8 << 20)
        with path.open("wb") as file:
            for _ in range(_FIO_FILE_BYTES // len(zeros)):
                file.write(zeros)
    done = subprocess.run(
        [
            "fio",
            "--name=wal",
            f"--filename={path}",
            f"--size={_FIO_FILE_BYTES}",
            f"--bs={block_size_bytes}",
            "--rw=write",
            "--direct=1",
            "--sync=dsync",
            "--ioengine=psync",
            "--iodepth=1",
            "--time_based",
            f"--runtime={seconds}",
            "--output-format=json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BaselineUnavailable(f"fio failed: {done.stdout}{done.stderr}")
    write = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["write"]
    return {"bytes_per_s": write["bw_bytes"], "p50_us": write["clat_ns"]["percentile"]["50.000000"] / 1000}


@contextmanager
def _far_end(role: str, *options: str) -> Iterator[int]:
    """Run one of the servers below in another process, on the other core; yields its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.baselines", role, *options], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        with kept_on(SERVER_CORE, process.pid), kept_on(CLIENT_CORE, 0):
            yield port
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def loopback_bytes_per_s(*, seconds: float) -> float:
    """One TCP stream over loopback, from as much memory as the load generator's, into a buffer as small as its own."""
    blob = memoryview(os.urandom(BLOB_BYTES))
    chunks = itertools.cycle([blob[at : at + _STREAM_CHUNK_BYTES] for at in range(0, BLOB_BYTES, _STREAM_CHUNK_BYTES)])
    with _far_end("drain") as port, socket.create_connection(("127.0.0.1", port)) as sock:
        total = 0
        began = time.perf_counter()
        warm_until, warm_bytes = began + min(seconds / 4, 0.5), 0
        for chunk in chunks:
            sock.sendall(chunk)
            total += len(chunk)
            now = time.perf_counter()
            if now < warm_until:
                began, warm_bytes = now, total
            elif now - began >= seconds:
                return (total - warm_bytes) / (now - began)
    raise AssertionError("an endless cycle ended")


def loopback_round_trip_us(*, request_bytes: int, response_bytes: int, seconds: float) -> float:
    """p50 of a request and its response over loopback, with a blocking server that does nothing else."""
    with (
        _far_end("echo", "--request-bytes", str(request_bytes), "--response-bytes", str(response_bytes)) as port,
        socket.create_connection(("127.0.0.1", port)) as sock,
    ):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        result = round_trips(
            sock, bytes(request_bytes), response_bytes, warmup_s=seconds / 4, seconds=seconds, broker_pid=None
        )
    return result["p50_us"]


def _serve_drain(sock: socket.socket) -> None:
    buffer = bytearray(RECEIVE_BYTES)
    while sock.recv_into(buffer):
        pass


def _serve_echo(sock: socket.socket, request_bytes: int, response_bytes: int) -> None:
    buffer = bytearray(request_bytes)
    response = bytes(response_bytes)
    while True:
        if sock.recv_into(buffer, request_bytes, socket.MSG_WAITALL) < request_bytes:
            return
        sock.sendall(response)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.baselines")
    parser.add_argument("role", choices=["drain", "echo"])
    parser.add_argument("--request-bytes", type=int, default=0)
    parser.add_argument("--response-bytes", type=int, default=0)
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            sock, _ = listener.accept()
            with sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if args.role == "drain":
                    _serve_drain(sock)
                else:
                    _serve_echo(sock, args.request_bytes, args.response_bytes)


if __name__ == "__main__":
    main()
