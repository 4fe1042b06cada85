"""WAL URIs."""

from __future__ import annotations

from pathlib import Path

import pytest

from wal.config import FileWalConfig, NullWalConfig, ObjectWalConfig, WalIo, parse_wal_uri
from wal.errors import WalConfigInvalid


@pytest.mark.parametrize(
    ("uri", "config"),
    [
        ("file:///var/lib/tidelog/wal", FileWalConfig(path=Path("/var/lib/tidelog/wal"), capacity_bytes=512 << 20)),
        ("file:///w?capacity=512MiB", FileWalConfig(path=Path("/w"), capacity_bytes=512 << 20)),
        ("file:///w?io=thread", FileWalConfig(path=Path("/w"), io=WalIo.THREAD)),
        ("file:///w?capacity=1048576", FileWalConfig(path=Path("/w"), capacity_bytes=1 << 20)),
        ("file://localhost/w%20x?capacity=2GiB", FileWalConfig(path=Path("/w x"), capacity_bytes=2 << 30)),
        (
            "s3://b/p?region=r&batch_interval_ms=20",
            ObjectWalConfig(store_uri="s3://b/p?region=r", batch_interval_ms=20),
        ),
        (
            "objects+file:///o?capacity=8MiB&batch_size=64KiB&parallelism=2&hedge_ms=0",
            ObjectWalConfig(
                store_uri="file:///o", capacity_bytes=8 << 20, batch_size_bytes=64 << 10, parallelism=2, hedge_ms=0
            ),
        ),
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
        ("s3://bucket?batch_interval_ms=soon", "not a number from 0 to 60000"),
        ("s3://bucket?parallelism=0", "not a number from 1 to 64"),
        ("s3://bucket?capacity=1MiB&batch_size=1MiB", "more than a quarter of capacity"),
        ("objects+file:///o?batch_size=1KiB", "not at least 4096"),
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
