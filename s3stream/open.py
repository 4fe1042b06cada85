"""From a URI to an object store and the keys within it.

- `file:///var/lib/tidelog/objects`: a local directory.
- `s3://bucket/some/prefix?region=eu-central-1`: AWS S3.
- `s3://bucket/prefix?endpoint=http://127.0.0.1:9000&path_style=true`: another store that speaks S3.
- `mem://`: nothing that outlives the process, for tests.

Options of `s3://`, all of them optional:

- `region`, `endpoint`, `path_style=true`: where the bucket is (docs/s3.md);
- `ca=/path/to/ca.pem`: what a TLS endpoint's certificate must be signed by, instead of the usual authorities;
- `profile`: of AWS's shared files;
- `sse=AES256`, `sse=aws:kms` or `sse=aws:kms:dsse`, with `sse_kms_key_id=…` and `sse_bucket_key=true`: encryption at rest;
- `checksums=false`: for a store that refuses CRC32C headers.

Credentials are never part of the URI: they would end up in logs. They come from the AWS chain (environment, files,
container, instance, web identity).
"""

from __future__ import annotations

import random
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from s3stream.config import InvalidSettings, ObjectStoreSettings
from s3stream.local import LocalObjectStore
from s3stream.memory import MemoryObjectStore
from s3stream.objectstore import ObjectStore
from s3stream.paths import Paths
from s3stream.read_only import ReadOnlyObjectStore

__all__ = ["OpenedStore", "open_object_store"]


_ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")
"""Of S3: by its own keys, or by those of its key management service, once or twice."""


class OpenedStore(NamedTuple):
    """A store, and where in it the cluster lives."""

    store: ObjectStore
    paths: Paths


def open_object_store(
    uri: str, *, rng: random.Random, settings: ObjectStoreSettings | None = None, read_only: bool = False
) -> OpenedStore:
    """Open what a URI names. Nothing is contacted yet. With `read_only` the store refuses to write.

    Raises:
        InvalidSettings: the URI cannot be understood.
        AccessDenied: a local directory cannot be used.
    """
    opened = _open(uri, rng, settings or ObjectStoreSettings(), read_only)
    return OpenedStore(ReadOnlyObjectStore(opened.store), opened.paths) if read_only else opened


def _open(uri: str, rng: random.Random, settings: ObjectStoreSettings, read_only: bool) -> OpenedStore:
    parts = urlsplit(uri)
    if parts.username or parts.password:
        raise InvalidSettings("object store URI: credentials do not belong in it; set them in the environment")
    options = _options(uri, parts.query)
    path = unquote(parts.path)
    try:
        if parts.scheme == "file":
            if parts.netloc not in ("", "localhost") or not path.startswith("/"):
                raise InvalidSettings(f"object store URI {uri!r}: write file:///absolute/path")
            _refuse_unknown(uri, options)
            store = LocalObjectStore(Path(path), threads=settings.local_threads, read_only=read_only)
            return OpenedStore(store, Paths())
        if parts.scheme == "mem":
            _refuse_unknown(uri, options)
            return OpenedStore(MemoryObjectStore(rng=rng, uri=uri), Paths(path.strip("/")))
        if parts.scheme == "s3":
            if not parts.netloc:
                raise InvalidSettings(f"object store URI {uri!r} names no bucket: write s3://bucket/prefix")
            if ":" in parts.netloc:
                raise InvalidSettings(
                    f"object store URI {uri!r}: {parts.netloc} is no bucket's name: write s3://bucket/prefix, and where the store is as endpoint=…"
                )
            # Its client takes half of the whole start to import, which other stores need not wait for.
            from s3stream.s3 import S3ObjectStore

            paths = Paths(path.strip("/"))
            endpoint_url = _endpoint(uri, options)
            bucket = S3ObjectStore(
                parts.netloc,
                rng=rng,
                settings=settings,
                endpoint_url=endpoint_url,
                region=options.pop("region", None),
                path_style=_flag(uri, options, "path_style", default=False),
                send_checksums=_flag(uri, options, "checksums", default=True),
                ca_file=_ca_file(uri, options, endpoint_url),
                encryption=_encryption(uri, options),
                profile=options.pop("profile", None),
            )
            _refuse_unknown(uri, options)
            return OpenedStore(bucket, paths)
    except InvalidSettings:
        raise
    except ValueError as error:
        raise InvalidSettings(f"object store URI {uri!r}: {error}") from error
    raise InvalidSettings(f"object store URI {uri!r}: the scheme must be file, s3 or mem")


def _options(uri: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in options:
            raise InvalidSettings(f"object store URI {uri!r}: {name} is given twice")
        options[name] = value
    return options


def _flag(uri: str, options: dict[str, str], name: str, *, default: bool) -> bool:
    value = options.pop(name, None)
    if value not in (None, "true", "false"):
        raise InvalidSettings(f"object store URI {uri!r}: {name} must be true or false")
    return default if value is None else value == "true"


def _endpoint(uri: str, options: dict[str, str]) -> str | None:
    endpoint_url = options.pop("endpoint", None)
    if endpoint_url is None:
        return None
    parts = urlsplit(endpoint_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InvalidSettings(f"object store URI {uri!r}: endpoint must be http://host:port or https://host:port")
    if parts.username or parts.password:
        raise InvalidSettings(
            "object store URI: credentials do not belong in its endpoint; set them in the environment"
        )
    return endpoint_url


def _ca_file(uri: str, options: dict[str, str], endpoint_url: str | None) -> str | None:
    ca_file = options.pop("ca", None)
    if ca_file is None:
        return None
    if endpoint_url is not None and not endpoint_url.startswith("https:"):
        raise InvalidSettings(f"object store URI {uri!r}: ca is for an endpoint that begins with https://")
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an ssl.SSLError is one
        raise InvalidSettings(
            f"object store URI {uri!r}: ca={ca_file} has no certificates that can be read ({error.strerror or error})"
        ) from error
    return ca_file


def _encryption(uri: str, options: dict[str, str]) -> dict[str, str | bool]:
    """As parameters of S3's PutObject."""
    algorithm = options.pop("sse", None)
    key_id = options.pop("sse_kms_key_id", None)
    bucket_key = _flag(uri, options, "sse_bucket_key", default=False)
    if algorithm not in (None, *_ENCRYPTIONS):
        raise InvalidSettings(f"object store URI {uri!r}: sse must be one of {', '.join(_ENCRYPTIONS)}")
    if (key_id is not None or bucket_key) and algorithm in (None, "AES256"):
        raise InvalidSettings(f"object store URI {uri!r}: sse_kms_key_id and sse_bucket_key go with sse=aws:kms")
    found: dict[str, str | bool] = {}
    if algorithm is not None:
        found["ServerSideEncryption"] = algorithm
    if key_id is not None:
        found["SSEKMSKeyId"] = key_id
    if bucket_key:
        found["BucketKeyEnabled"] = True
    return found


def _refuse_unknown(uri: str, options: dict[str, str]) -> None:
    if options:
        raise InvalidSettings(f"object store URI {uri!r}: unknown options {', '.join(sorted(options))}")
