"""WAL URIs."""

from __future__ import annotations

from pathlib import Path

import pytest

from wal.config import FileWalConfig, NullWalConfig, WalIo, parse_wal_uri
from wal.errors import WalConfigInvalid


@pytest.mark.parametrize(
    ("uri", "config"),
    [
        ("file:///var/lib/tidelog/wal", FileWalConfig(path=Path("/var/lib/tidelog/wal"), capacity_bytes=512 << 20)),
        ("file:///w?capacity=512MiB", FileWalConfig(path=Path("/w"), capacity_bytes=512 << 20)),
        ("file:///w?io=thread", FileWalConfig(path=Path("/w"), io=WalIo.THREAD)),
        ("file:///w?capacity=1048576", FileWalConfig(path=Path("/w"), capacity_bytes=1 << 20)),
        ("file://localhost/w%20x?capacity=2GiB", FileWalConfig(path=Path("/w x"), capacity_bytes=2 << 30)),
        ("null://", NullWalConfig()),
    ],
)
def test_a_uri_names_a_log(uri: str, config: object) -> None:
    assert parse_wal_uri(uri) == config


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("file:///w?io=uring", "io 'uring' is none of auto, aio, thread"),
        ("file:///w?capacity=lots", "is not a size such as"),
        ("file:///w?capacity=1GB", "is not a size such as"),
        ("file:///w?capacity=4KiB", "at least 1048576"),
        ("file:///w?capacity=1048577", "multiple of 4096"),
        ("file:///w?kapacity=1GiB", r"unknown options \['kapacity'\]"),
        ("file://elsewhere/w", "three slashes"),
        ("file:///", "path of a directory is missing"),
        ("null://x", "takes nothing behind it"),
        ("ftp://x/y", "scheme 'ftp' is unknown"),
        ("/var/lib/wal", "scheme '' is unknown"),
    ],
)
def test_what_is_wrong_with_a_uri_is_said(uri: str, why: str) -> None:
    with pytest.raises(WalConfigInvalid, match=why):
        parse_wal_uri(uri)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(WalConfigInvalid, match=r"three slashes.*is missing.*not a size.*unknown options"):
        parse_wal_uri("file://elsewhere?capacity=x&mode=fast")
