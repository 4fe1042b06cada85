"""The WAL's URI, parsed and validated whole.

file:///var/lib/tidelog/wal?capacity=512MiB   a ring on a local disk or an attached volume
file:///var/lib/tidelog/wal?io=thread         written by a thread, also where kernel AIO is to be had
null://                                       nothing is kept: for benchmarks only
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from wal.errors import WalConfigInvalid
from wal.frame import BLOCK_SIZE_BYTES

__all__ = [
    "DEFAULT_CAPACITY_BYTES",
    "MIN_CAPACITY_BYTES",
    "FileWalConfig",
    "NullWalConfig",
    "WalConfig",
    "WalIo",
    "parse_wal_uri",
]

DEFAULT_CAPACITY_BYTES = 512 << 20
"""What is not uploaded yet is in memory as well: more than the arena holds would never be used."""

MIN_CAPACITY_BYTES = 1 << 20
"""Room for a few writes; a real node wants seconds of its traffic."""

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


WalConfig = FileWalConfig | NullWalConfig


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
    raise WalConfigInvalid(f"WAL URI {uri!r}: scheme {parts.scheme!r} is unknown; use file:///path?capacity=1GiB")


def _parse_file(uri: str, host: str, path: str, options: dict[str, str]) -> FileWalConfig:
    problems = []
    if host not in ("", "localhost"):
        problems.append(f"host {host!r} is not this one (write three slashes: file:///path)")
    if path in ("", "/"):
        problems.append("the path of a directory is missing")
    capacity_bytes = DEFAULT_CAPACITY_BYTES
    if (text := options.pop("capacity", None)) is not None:
        match = _SIZE.fullmatch(text)
        if match is None or match[2] not in _UNITS:
            problems.append(f"capacity {text!r} is not a size such as 512MiB or 1GiB")
        else:
            capacity_bytes = int(match[1]) * _UNITS[match[2]]
            if capacity_bytes < MIN_CAPACITY_BYTES or capacity_bytes % BLOCK_SIZE_BYTES:
                problems.append(
                    f"capacity {text!r} is not a multiple of {BLOCK_SIZE_BYTES} bytes of at least {MIN_CAPACITY_BYTES}"
                )
    io = options.pop("io", WalIo.AUTO.value)
    if io not in set(WalIo):
        problems.append(f"io {io!r} is none of {', '.join(WalIo)}")
    if options:
        problems.append(f"unknown options {sorted(options)}; known are capacity and io")
    if problems:
        raise WalConfigInvalid(f"WAL URI {uri!r}: {'; '.join(problems)}")
    return FileWalConfig(path=Path(path), capacity_bytes=capacity_bytes, io=WalIo(io))
