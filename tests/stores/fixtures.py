"""S3 servers for tests of every package: moto's in this process, MinIO and SeaweedFS as processes of their own.

A store that is not built is a skipped test with its reason; with CI=true a failed one, since there all are built.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.stores.process import PROCESSES, StoreProcess, StoreUnavailable, ended_at_last
from tests.stores.s3_server import S3Server

__all__ = ["S3_SERVERS", "built", "s3_server", "s3_server_named"]

S3_SERVERS = ("moto", *PROCESSES)


def built(store: StoreProcess) -> StoreProcess:
    """The store, or a skipped test; with CI=true a failed one."""
    try:
        store.check()
    except StoreUnavailable as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    return store


@pytest.fixture(scope="session")
def s3_server_named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], S3Server]]:
    """Gives a server by its name. Each is started once, when it is first asked for, and ends with the run."""
    with ExitStack() as running:

        @functools.cache
        def server(name: str) -> S3Server:
            if name == "moto":
                from tests.s3stream import moto  # a web framework, which most runs of a few tests need not wait for

                return moto.server()
            process = built(PROCESSES[name](tmp_path_factory.mktemp(name)))
            running.enter_context(ended_at_last(process))
            process.start()
            process.wait_ready()
            return process.server

        yield server


@pytest.fixture(params=S3_SERVERS)
def s3_server(request: pytest.FixtureRequest, s3_server_named: Callable[[str], S3Server]) -> S3Server:
    """Each server in turn."""
    return s3_server_named(request.param)
