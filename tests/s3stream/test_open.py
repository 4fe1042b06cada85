"""URIs of object stores."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from s3stream.config import InvalidSettings, ObjectStoreSettings
from s3stream.local import LocalObjectStore
from s3stream.memory import MemoryObjectStore
from s3stream.open import OpenedStore, open_object_store
from s3stream.s3 import S3ObjectStore


def opened(uri: str) -> OpenedStore:
    return open_object_store(uri, rng=random.Random(0), settings=ObjectStoreSettings())


async def test_a_directory(tmp_path: Path) -> None:
    store, paths = opened(f"file://{tmp_path}/with%20space")
    assert isinstance(store, LocalObjectStore)
    await store.put(paths.cluster, [b"x"])
    assert (tmp_path / "with space" / "cluster").read_bytes() == b"x"
    await store.close()


async def test_memory() -> None:
    store, paths = opened("mem://")
    assert isinstance(store, MemoryObjectStore)
    assert paths.prefix == ""


async def test_s3() -> None:
    store, paths = opened("s3://bucket/some/prefix?region=eu-central-1")
    assert isinstance(store, S3ObjectStore)
    assert store.uri == "s3://bucket"
    assert paths.prefix == "some/prefix"
    await store.close()


async def test_another_store_that_speaks_s3() -> None:
    store, paths = opened("s3://bucket?endpoint=http://127.0.0.1:9000&path_style=true&checksums=false&region=any")
    assert store.uri == "s3://bucket?endpoint=http://127.0.0.1:9000"
    assert paths.prefix == ""
    await store.close()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("ftp://host/path", "the scheme must be file, s3 or mem"),
        ("/just/a/path", "the scheme must be file, s3 or mem"),
        ("file://relative/path", "write file:///absolute/path"),
        ("file:///tmp/x?region=a", "unknown options region"),
        ("s3:///prefix", "names no bucket"),
        (
            "s3://localhost:9000/bucket",
            "localhost:9000 is no bucket's name: write .* and where the store is as endpoint=",
        ),
        ("s3://key:secret@bucket/", "credentials do not belong in it"),
        ("s3://bucket?pathstyle=true", "unknown options pathstyle"),
        ("s3://bucket?path_style=yes", "path_style must be true or false"),
        ("s3://bucket?region=a&region=b", "region is given twice"),
        ("s3://bucket/a//b", "key prefix"),
        ("mem://?x=1", "unknown options x"),
        ("s3://bucket?endpoint=127.0.0.1:9000", "endpoint must be http://host:port or https://host:port"),
        ("s3://bucket?endpoint=https://key:secret@host", "credentials do not belong in its endpoint"),
        ("s3://bucket?ca=/no/such/file.pem", "ca=/no/such/file.pem has no certificates .*No such file"),
        ("s3://bucket?ca=/etc/hostname&endpoint=http://127.0.0.1:9000", "ca is for an endpoint that begins with https"),
        ("s3://bucket?ca=/etc/passwd", "ca=/etc/passwd has no certificates that can be read"),
        ("s3://bucket?sse=aes", "sse must be one of AES256, aws:kms, aws:kms:dsse"),
        ("s3://bucket?sse_kms_key_id=alias/a", "go with sse=aws:kms"),
        ("s3://bucket?sse=AES256&sse_bucket_key=true", "go with sse=aws:kms"),
    ],
)
def test_what_cannot_be_understood_is_refused(uri: str, expected: str) -> None:
    with pytest.raises(InvalidSettings, match=expected):
        opened(uri)


def test_secrets_are_not_repeated() -> None:
    with pytest.raises(InvalidSettings) as caught:
        opened("s3://key:secret@bucket/")
    assert "secret@" not in str(caught.value)
