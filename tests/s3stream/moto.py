"""An S3 server for tests: moto's, in this process, on a free port of the loopback interface."""

from __future__ import annotations

import functools
import itertools
import random

from moto.server import ThreadedMotoServer

from s3stream.config import ObjectStoreSettings
from s3stream.s3 import S3ObjectStore
from tests.stores.s3_server import QUICK, S3Server

__all__ = ["QUICK", "endpoint_url", "new_bucket", "open_bucket", "server"]

_numbers = itertools.count()


@functools.cache
def endpoint_url() -> str:
    """Where the server is; started on first use, and ended with the process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


def server() -> S3Server:
    """The server as tests use any. Of requests at the same moment it checks no condition against another."""
    return S3Server(name="moto", endpoint_url=endpoint_url())


def open_bucket(bucket: str, settings: ObjectStoreSettings = QUICK, *, url: str | None = None) -> S3ObjectStore:
    """A client of a bucket, with credentials that mean nothing."""
    return S3ObjectStore(
        bucket,
        rng=random.Random(0),
        settings=settings,
        endpoint_url=url or endpoint_url(),
        region="us-east-1",
        path_style=True,
        access_key_id="test",
        secret_access_key="test",
    )


async def new_bucket(settings: ObjectStoreSettings = QUICK) -> S3ObjectStore:
    """A client of a new, empty bucket."""
    bucket = f"bucket-{next(_numbers)}"
    store = open_bucket(bucket, settings)
    client = await store._open()
    await client.create_bucket(Bucket=bucket)
    return store
