"""The WAL's URI, parsed and validated whole.

file:///var/lib/tidelog/wal?capacity=512MiB   a ring on a local disk or an attached volume
file:///var/lib/tidelog/wal?io=thread         written by a thread, also where kernel AIO is to be had
s3://bucket/prefix?batch_interval_ms=100      objects in a bucket: no local state at all
objects+file:///srv/bucket                    the same in a local directory, as an object store keeps it: for development
null://                                       nothing is kept: for benchmarks only

`s3://` takes the options of `object.store.uri` as well, such as `endpoint` and `region`. `objects+` goes before the URI of any object
store; `file:` and `s3:` alone mean what they are good at.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from wal.errors import WalConfigInvalid
from wal.frame import BLOCK_SIZE_BYTES

__all__ = [
    "DEFAULT_CAPACITY_BYTES",
    "MIN_CAPACITY_BYTES",
    "OBJECTS_PREFIX",
    "FileWalConfig",
    "NullWalConfig",
    "ObjectWalConfig",
    "WalConfig",
    "WalIo",
    "parse_wal_uri",
]

DEFAULT_CAPACITY_BYTES = 512 << 20
"""What is not uploaded yet is in memory as well: more than the arena holds would never be used."""

MIN_CAPACITY_BYTES = 1 << 20
"""Room for a few writes; a real node wants seconds of its traffic."""

DEFAULT_BATCH_SIZE_BYTES = 4 << 20
MIN_BATCH_SIZE_BYTES = 4 << 10

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([A-Za-z]*)")


class WalIo(enum.StrEnum):
    """Who does the writing."""

    AUTO = "auto"
    """Kernel AIO where the file system and the machine have it, else a thread."""
    AIO = "aio"
    THREAD = "thread"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileWalConfig:
    """`file://`"""

    path: Path
    capacity_bytes: int = DEFAULT_CAPACITY_BYTES
    io: WalIo = WalIo.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class NullWalConfig:
    """`null://`"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectWalConfig:
    """`s3://`, and `objects+` any object store"""

    store_uri: str
    """What opens the object store."""
    capacity_bytes: int = DEFAULT_CAPACITY_BYTES
    """Most bytes that are not trimmed."""
    batch_interval_ms: int = 100
    """Between two PUTs, unless a batch is full: what gathers meanwhile waits. Half of it is added to the mean latency, and it bounds
    the number, so the price, of PUTs."""
    batch_size_bytes: int = DEFAULT_BATCH_SIZE_BYTES
    """A batch of this size does not wait for the interval; larger ones gain no throughput."""
    parallelism: int = 8
    """PUTs under way: with full batches, throughput is this many batches per round trip."""
    hedge_ms: int = 500
    """A PUT that takes longer gets a second one beside it; 0: never. Some of each thousand requests to S3 take seconds."""


WalConfig = FileWalConfig | ObjectWalConfig | NullWalConfig

OBJECTS_PREFIX = "objects+"
_OBJECT_LIMITS = {"batch_interval_ms": (0, 60_000), "parallelism": (1, 64), "hedge_ms": (0, 60_000)}


def parse_wal_uri(uri: str) -> WalConfig:
    """What a WAL URI asks for.

    Raises:
        WalConfigInvalid: says everything that is wrong with it.
    """
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme == "file":
        return _parse_file(uri, parts.netloc, unquote(parts.path), options)
    if parts.scheme == "null":
        if parts.netloc or parts.path or options:
            raise WalConfigInvalid(f"WAL URI {uri!r}: null:// takes nothing behind it")
        return NullWalConfig()
    if parts.scheme == "s3" or parts.scheme.startswith(OBJECTS_PREFIX):
        return _parse_objects(uri, options)
    raise WalConfigInvalid(
        f"WAL URI {uri!r}: scheme {parts.scheme!r} is unknown; use file:///path?capacity=1GiB or s3://bucket/prefix"
    )


def _parse_file(uri: str, host: str, path: str, options: dict[str, str]) -> FileWalConfig:
    problems = []
    if host not in ("", "localhost"):
        problems.append(f"host {host!r} is not this one (write three slashes: file:///path)")
    if path in ("", "/"):
        problems.append("the path of a directory is missing")
    capacity_bytes = _size(options, "capacity", DEFAULT_CAPACITY_BYTES, problems)
    if capacity_bytes % BLOCK_SIZE_BYTES:
        problems.append(f"capacity {capacity_bytes} is not a multiple of {BLOCK_SIZE_BYTES} bytes")
    io = options.pop("io", WalIo.AUTO.value)
    if io not in set(WalIo):
        problems.append(f"io {io!r} is none of {', '.join(WalIo)}")
    if options:
        problems.append(f"unknown options {sorted(options)}; known are capacity and io")
    if problems:
        raise WalConfigInvalid(f"WAL URI {uri!r}: {'; '.join(problems)}")
    return FileWalConfig(path=Path(path), capacity_bytes=capacity_bytes, io=WalIo(io))


def _parse_objects(uri: str, options: dict[str, str]) -> ObjectWalConfig:
    problems: list[str] = []
    capacity_bytes = _size(options, "capacity", DEFAULT_CAPACITY_BYTES, problems)
    default = min(DEFAULT_BATCH_SIZE_BYTES, capacity_bytes // 4)
    batch_size_bytes = _size(options, "batch_size", default, problems, least=MIN_BATCH_SIZE_BYTES)
    numbers: dict[str, int] = {}
    for name, (least, most) in _OBJECT_LIMITS.items():
        if (text := options.pop(name, None)) is not None:
            if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
                problems.append(f"{name} {text!r} is not a number from {least} to {most}")
            else:
                numbers[name] = int(text)
    if batch_size_bytes > capacity_bytes // 4:
        problems.append(f"batch_size {batch_size_bytes} is more than a quarter of capacity {capacity_bytes}")
    if problems:
        raise WalConfigInvalid(f"WAL URI {uri!r}: {'; '.join(problems)}")
    store_uri = urlunsplit(urlsplit(uri.removeprefix(OBJECTS_PREFIX))._replace(query=urlencode(options)))
    return ObjectWalConfig(
        store_uri=store_uri, capacity_bytes=capacity_bytes, batch_size_bytes=batch_size_bytes, **numbers
    )


def _size(
    options: dict[str, str], name: str, default: int, problems: list[str], *, least: int = MIN_CAPACITY_BYTES
) -> int:
    if (text := options.pop(name, None)) is None:
        return default
    match = _SIZE.fullmatch(text)
    if match is None or match[2] not in _UNITS:
        problems.append(f"{name} {text!r} is not a size such as 512MiB or 1GiB")
        return default
    size = int(match[1]) * _UNITS[match[2]]
    if size < least:
        problems.append(f"{name} {text!r} is not at least {least} bytes")
    return size
