"""What the S3 store costs in CPU, beside a bare loop of sockets: CPU seconds of this process per GB, on loopback, over HTTP and
TLS, against a server in another process that throws bodies away and makes them up.

    python -m bench.s3 [--gigabytes 2] [--rounds 5] [--tls]

The bare loop sends a fixed head and the same pieces of memory, or receives into one buffer that it keeps: sockets and nothing
else (with TLS: blocking ones, in a thread). So it is a floor, and no client. Ours is configured as the broker does it for large objects: bodies not
hashed for the signature, one CRC32C that the caller knows already, objects and parts of 8 and 16 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import uvloop

from s3stream.config import ObjectStoreSettings
from s3stream.s3 import S3ObjectStore
from wal.checksum import crc32c

MIB = 1 << 20
_OBJECT_SIZES = (8 * MIB, 16 * MIB)
_MULTIPART_SIZE = 64 * MIB
_PIECE_SIZE = 100_000
"""As batches lie in the arena."""
_IN_FLIGHT = 2
_BEGUN = b"<R><UploadId>id</UploadId></R>"
_COMPLETED = b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"


class _Sink(asyncio.BufferedProtocol):
    """Just enough of S3: swallows bodies, answers GETs with zeros of the size that their range asks for."""

    body = bytes(max(_OBJECT_SIZES))

    def __init__(self) -> None:
        self._buffer = bytearray(1 << 20)
        self._head = b""
        self._left = 0
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        taken = min(self._left, nbytes)
        if taken:
            self._left -= taken
            if not self._left:
                self._transport.write(self._answer)
        if taken < nbytes:
            self._head += bytes(self._buffer[taken:nbytes])
            self._parse()

    def _parse(self) -> None:
        while b"\r\n\r\n" in self._head:
            head, _, self._head = self._head.partition(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
            if lines[0].startswith(b"GET"):
                first, _, last = fields[b"range"].removeprefix(b"bytes=").partition(b"-")
                size = int(last) - int(first) + 1
                self._transport.write(
                    b"HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\nContent-Range: bytes %s-%s/%d\r\n"
                    b'ETag: "x"\r\n\r\n' % (size, first, last, size)
                )
                self._transport.write(memoryview(self.body)[:size])
                continue
            xml = b"" if lines[0].startswith(b"PUT") else _BEGUN if b"uploads" in lines[0] else _COMPLETED
            self._answer = b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: %d\r\n\r\n%s' % (len(xml), xml)
            self._left = int(fields.get(b"content-length", b"0"))
            taken = min(self._left, len(self._head))
            self._head = self._head[taken:]
            self._left -= taken
            if not self._left:
                self._transport.write(self._answer)


def _serve(connection: Connection, certificate: Path) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        plain = await loop.create_server(_Sink, "127.0.0.1", 0)
        secure = await loop.create_server(_Sink, "127.0.0.1", 0, ssl=tls)
        connection.send(tuple(server.sockets[0].getsockname()[1] for server in (plain, secure)))
        await asyncio.gather(plain.serve_forever(), secure.serve_forever())

    uvloop.run(serve())


class _Bare:
    """The floor: sockets."""

    def __init__(self, port: int, trusted: Path | None) -> None:
        self._port = port
        self._tls = None if trusted is None else ssl.create_default_context(cafile=str(trusted))

    async def put(self, parts: list[memoryview], count: int) -> None:
        size = sum(map(len, parts))
        head = b"PUT /bucket/key HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size
        if self._tls is not None:
            await asyncio.to_thread(self._put_blocking, head, parts, count)
            return
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.setblocking(False)
            for _ in range(count):
                await loop.sock_sendall(connection, head)
                for part in parts:
                    await loop.sock_sendall(connection, part)
                assert (await loop.sock_recv(connection, 1000)).startswith(b"HTTP/1.1 200")

    async def get(self, size: int, count: int) -> None:
        head = b"GET /bucket/key HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-%d\r\n\r\n" % (size - 1)
        if self._tls is not None:
            await asyncio.to_thread(self._get_blocking, head, size, count)
            return
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.setblocking(False)
            buffer = bytearray(1 << 20)
            for _ in range(count):
                await loop.sock_sendall(connection, head)
                got = 0
                while got < size:  # and a few bytes of the head
                    got += await loop.sock_recv_into(connection, buffer)

    def _connect(self) -> ssl.SSLSocket:
        assert self._tls is not None
        return self._tls.wrap_socket(socket.create_connection(("127.0.0.1", self._port)), server_hostname="127.0.0.1")

    def _put_blocking(self, head: bytes, parts: list[memoryview], count: int) -> None:
        with self._connect() as connection:
            for _ in range(count):
                connection.sendall(head)
                for part in parts:
                    connection.sendall(part)
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")

    def _get_blocking(self, head: bytes, size: int, count: int) -> None:
        buffer = bytearray(1 << 20)
        with self._connect() as connection:
            for _ in range(count):
                connection.sendall(head)
                got = 0
                while got < size:
                    got += connection.recv_into(buffer)


async def _in_flight(call: Callable[[], Awaitable[object]], count: int) -> None:
    async def some() -> None:
        for _ in range(max(count // _IN_FLIGHT, 1)):
            await call()

    await asyncio.gather(*(some() for _ in range(_IN_FLIGHT)))


async def _measure(call: Callable[[], Awaitable[object]], moved_bytes: int) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    await call()
    gigabytes = moved_bytes / 1e9
    return (time.process_time() - cpu) / gigabytes, gigabytes / (time.perf_counter() - wall)


Loads = dict[str, tuple[Callable[[], Awaitable[object]], int]]
"""By name: what to run, and how many bytes that moves."""


def _pieces(size: int) -> list[memoryview]:
    arena = memoryview(bytearray(random.Random(0).randbytes(MIB) * (size // MIB)))
    return [arena[at : at + _PIECE_SIZE] for at in range(0, size, _PIECE_SIZE)]


def _loads(store: S3ObjectStore, bare: _Bare, total_bytes: int, label: str) -> Loads:
    loads: Loads = {}
    for size in _OBJECT_SIZES:
        count = max(total_bytes // size // _IN_FLIGHT, 1) * _IN_FLIGHT
        parts, moved, mib = _pieces(size), count * size, size // MIB
        crc = crc32c(b"".join(parts))

        def put(parts: list[memoryview] = parts, crc: int = crc, count: int = count) -> Awaitable[None]:
            return _in_flight(lambda: store.put("key", parts, crc32c=crc), count)

        def get(size: int = size, count: int = count) -> Awaitable[None]:
            return _in_flight(lambda: store.get_range("key", 0, size), count)

        if size == _OBJECT_SIZES[0]:
            loads[f"PUT bare {label}"] = (lambda parts=parts, count=count: bare.put(parts, count)), moved  # type: ignore[misc]
            loads[f"GET bare {label}"] = (lambda size=size, count=count: bare.get(size, count)), moved  # type: ignore[misc]
        # The first line of each is what `bench` compares.
        name = "store" if size == _OBJECT_SIZES[0] else f"store {mib} MiB"
        loads[f"PUT S3 {name} {label}"] = put, moved
        loads[f"GET S3 {name} {label}"] = get, moved

    pieces = _pieces(_MULTIPART_SIZE)

    async def multipart() -> None:
        async def stream() -> AsyncIterator[memoryview]:
            for piece in pieces:
                yield piece

        for _ in range(max(total_bytes // _MULTIPART_SIZE, 1)):
            await store.put_multipart("key", stream())

    loads[f"PUT in parts of 8 MiB {label}"] = multipart, max(total_bytes // _MULTIPART_SIZE, 1) * _MULTIPART_SIZE
    return loads


def _store(port: int, trusted: Path | None) -> S3ObjectStore:
    return S3ObjectStore(
        "bucket", rng=random.Random(0), settings=ObjectStoreSettings(request_timeout_ms=20_000, deadline_ms=20_000),
        endpoint_url=f"http{'s' if trusted else ''}://127.0.0.1:{port}", ca_file=str(trusted) if trusted else None,
        region="us-east-1", path_style=True, access_key_id="bench", secret_access_key="bench",
    )  # fmt: skip


async def _run(ports: tuple[int, int], trusted: Path, gigabytes: float, rounds: int, *, with_tls: bool) -> None:
    total_bytes = int(gigabytes * 1e9)
    stores = [_store(ports[0], None)]
    loads = _loads(stores[0], _Bare(ports[0], None), total_bytes, "HTTP")
    if with_tls:
        stores.append(_store(ports[1], trusted))
        loads |= _loads(stores[1], _Bare(ports[1], trusted), total_bytes, "TLS")
    for store in stores:
        await store.put("key", [b"connects"])
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in loads}
    for _ in range(rounds):
        for name, (load, moved) in loads.items():
            found[name].append(await _measure(load, moved))
    for store in stores:
        await store.close()
    print(
        f"{gigabytes} GB each, objects of 8 MiB in pieces of {_PIECE_SIZE} bytes where nothing is said, {rounds} rounds"
    )
    for name, figures in found.items():
        cpus, rates = zip(*figures, strict=True)
        print(
            f"{name:<28} {statistics.median(cpus):6.2f} CPU s/GB ({min(cpus):.2f} to {max(cpus):.2f})"
            f"   {statistics.median(rates):6.2f} GB/s"
        )


def _certificate(directory: Path) -> Path:
    """For 127.0.0.1, signed by itself: key and certificate in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "bench")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "bench.pem"
    encoding = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(encoding)
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tls", action="store_true", help="over TLS as well")
    arguments = parser.parse_args()
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        os.environ.pop(name, None)
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as directory:
        certificate = _certificate(Path(directory))
        context = multiprocessing.get_context("spawn")
        server = context.Process(target=_serve, args=(theirs, certificate), daemon=True)
        server.start()
        try:
            uvloop.run(_run(ours.recv(), certificate, arguments.gigabytes, arguments.rounds, with_tls=arguments.tls))
        finally:
            server.terminate()
            server.join()


if __name__ == "__main__":
    main()
