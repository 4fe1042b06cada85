"""What the S3 store costs in CPU, beside a bare HTTP client: CPU seconds of this process per GB, over plain HTTP on
loopback, against a server in another process that throws bodies away and makes them up.

    python -m bench.s3 [--gigabytes 2] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import cast

import uvloop

from s3stream.config import ObjectStoreSettings
from s3stream.s3 import S3ObjectStore
from wal.checksum import crc32c

_OBJECT_SIZE = 8 << 20
_PART_SIZE = 100_000
_IN_FLIGHT = 2


class _Sink(asyncio.BufferedProtocol):
    """Just enough of S3: swallows PUT bodies, answers GETs with zeros."""

    body = bytes(_OBJECT_SIZE)

    def __init__(self) -> None:
        self._buffer = bytearray(1 << 20)
        self._head = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        taken = min(self._left, nbytes)
        if taken:
            self._left -= taken
            if not self._left:
                self._answer()
        if taken < nbytes:
            self._head += bytes(self._buffer[taken:nbytes])
            self._parse()

    def _parse(self) -> None:
        while b"\r\n\r\n" in self._head:
            head, _, self._head = self._head.partition(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
            if lines[0].startswith(b"GET"):
                self._transport.write(
                    b"HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\nContent-Range: bytes 0-%d/%d\r\n"
                    b'ETag: "x"\r\n\r\n' % (_OBJECT_SIZE, _OBJECT_SIZE - 1, _OBJECT_SIZE)
                )
                self._transport.write(self.body)
                continue
            self._left = int(fields[b"content-length"])
            taken = min(self._left, len(self._head))
            self._head = self._head[taken:]
            self._left -= taken
            if not self._left:
                self._answer()

    def _answer(self) -> None:
        self._transport.write(b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\n\r\n')


def _serve(connection: Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Sink, "127.0.0.1", 0)
        connection.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())


async def _bare_put(port: int, parts: list[memoryview], count: int) -> None:
    loop = asyncio.get_running_loop()
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setblocking(False)
    head = b"PUT /bucket/key HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % _OBJECT_SIZE
    for _ in range(count):
        await loop.sock_sendall(connection, head)
        for part in parts:
            await loop.sock_sendall(connection, part)
        assert (await loop.sock_recv(connection, 1000)).startswith(b"HTTP/1.1 200")
    connection.close()


async def _bare_get(port: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setblocking(False)
    buffer = bytearray(1 << 20)
    for _ in range(count):
        await loop.sock_sendall(connection, b"GET /bucket/key HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = 0
        while got < _OBJECT_SIZE:
            got += await loop.sock_recv_into(connection, buffer)
    connection.close()


async def _in_flight(call: Callable[[], Awaitable[object]], count: int) -> None:
    async def some() -> None:
        for _ in range(count // _IN_FLIGHT):
            await call()

    await asyncio.gather(*(some() for _ in range(_IN_FLIGHT)))


async def _measure(call: Callable[[], Awaitable[object]], count: int) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    await call()
    gigabytes = count * _OBJECT_SIZE / 1e9
    return (time.process_time() - cpu) / gigabytes, gigabytes / (time.perf_counter() - wall)


async def _run(port: int, gigabytes: float, rounds: int) -> None:
    count = int(gigabytes * 1e9 / _OBJECT_SIZE) // _IN_FLIGHT * _IN_FLIGHT
    arena = memoryview(bytearray(random.Random(0).randbytes(1 << 20) * (_OBJECT_SIZE >> 20)))
    parts = [arena[at : at + _PART_SIZE] for at in range(0, _OBJECT_SIZE, _PART_SIZE)]
    crc = crc32c(arena)
    store = S3ObjectStore(
        "bucket", rng=random.Random(0), settings=ObjectStoreSettings(request_timeout_ms=5000, deadline_ms=5000), endpoint_url=f"http://127.0.0.1:{port}",
        region="us-east-1", path_style=True, access_key_id="bench", secret_access_key="bench",
    )  # fmt: skip
    loads: dict[str, Callable[[], Awaitable[object]]] = {
        "PUT bare HTTP": lambda: _bare_put(port, parts, count),
        "PUT S3 store": lambda: _in_flight(lambda: store.put("key", parts, crc32c=crc), count),
        "GET bare HTTP": lambda: _bare_get(port, count),
        "GET S3 store": lambda: _in_flight(lambda: store.get_range("key", 0, _OBJECT_SIZE), count),
    }
    await store.put("key", parts)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in loads}
    for _ in range(rounds):
        for name, load in loads.items():
            found[name].append(await _measure(load, count))
    await store.close()
    print(f"{count} objects of {_OBJECT_SIZE >> 20} MiB in parts of {_PART_SIZE} bytes, {rounds} rounds, medians")
    for name, figures in found.items():
        cpu, rate = (statistics.median(values) for values in zip(*figures, strict=True))
        print(f"{name:<16} {cpu:6.2f} CPU s/GB   {rate:6.2f} GB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    try:
        uvloop.run(_run(ours.recv(), arguments.gigabytes, arguments.rounds))
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
