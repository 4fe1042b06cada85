"""The S3 store behind a network that fails: what the engine and the metadata log rest on holds through all of it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from s3stream.config import ObjectStoreSettings
from s3stream.objectstore import AccessDenied, Buffer, PreconditionFailed, Unavailable
from s3stream.paths import Paths
from s3stream.probe import probe
from s3stream.s3 import S3ObjectStore
from tests.s3stream.faulty_proxy import PASSING, Fault, FaultyProxy, proxied
from tests.s3stream.moto import QUICK, endpoint_url, new_bucket, open_bucket
from tests.s3stream.scripted import CUT_SHORT, Request, answer, error, hang_up, serving

PATIENT = ObjectStoreSettings(
    request_timeout_ms=20_000, deadline_ms=60_000, retry_first_delay_ms=1, retry_max_delay_ms=20
)


@pytest.fixture
def proxy() -> Iterator[FaultyProxy]:
    with proxied(endpoint_url()) as started:
        yield started


@pytest.fixture
async def store(proxy: FaultyProxy) -> AsyncIterator[S3ObjectStore]:
    """A client of a new bucket, through the proxy."""
    direct = await new_bucket()
    store = open_bucket(direct._bucket, PATIENT, url=proxy.url)
    yield store
    await store.close()
    await direct.close()


def first(count: int, fault: Fault, *, method: str = "") -> Callable[[str, str], Fault]:
    """So many requests (of a method) fail, the rest does not."""
    left = itertools.count(count, -1)
    return lambda found, _: fault if found.startswith(method) and next(left) > 0 else Fault.NONE


def often(seed: int, share: float) -> Callable[[str, str], Fault]:
    """A share of requests fails, each in any way that passes."""
    rng = random.Random(seed)
    return lambda method, target: rng.choice(PASSING) if rng.random() < share else Fault.NONE


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.name.lower())
async def test_each_fault_is_got_over(store: S3ObjectStore, proxy: FaultyProxy, fault: Fault) -> None:
    content = random.Random(0).randbytes(200_000)
    proxy.fault_of = first(2, fault, method="PUT")
    await store.put("key", [content])
    assert proxy.seen[fault] == 2
    proxy.fault_of = first(2, fault, method="GET")
    assert (await store.get("key")).data == content
    proxy.fault_of = first(2, fault, method="GET")
    assert await store.get_range("key", 1000, 150_000) == content[1000:150_000]
    proxy.fault_of = first(2, fault, method="GET")
    assert [found.key async for found in store.list("")] == ["key"]
    proxy.fault_of = first(2, fault, method="POST")
    await store.delete_many(["key"])
    assert proxy.seen[fault] == 10
    proxy.fault_of = first(1, fault, method="HEAD")
    assert await store.now_ms() > 0


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.DONE_BUT_500])
async def test_a_conditional_write_that_was_done_meets_itself(
    store: S3ObjectStore, proxy: FaultyProxy, fault: Fault
) -> None:
    proxy.fault_of = first(1, fault, method="PUT")
    with pytest.raises(PreconditionFailed):
        await store.put_if_absent("key", [b"mine"])
    found = await store.get("key")
    assert found.data == b"mine"
    proxy.fault_of = first(1, fault, method="PUT")
    with pytest.raises(PreconditionFailed):
        await store.put_if_match("key", [b"mine, too"], found.etag)
    assert (await store.get("key")).data == b"mine, too"


@pytest.mark.parametrize("seed", range(3))
async def test_the_probe_is_not_misled(store: S3ObjectStore, proxy: FaultyProxy, seed: int) -> None:
    proxy.fault_of = first(3, PASSING[2 + seed], method="PUT")
    await probe(store, Paths(), "nonce0")
    proxy.fault_of = often(seed, 0.4)
    for number in range(5):
        await probe(store, Paths(), f"nonce{number}")


async def test_a_large_object_arrives_whole(store: S3ObjectStore, proxy: FaultyProxy) -> None:
    content = random.Random(1).randbytes(20 << 20)

    async def pieces() -> AsyncIterator[Buffer]:
        for begin in range(0, len(content), 3 << 20):
            yield memoryview(content)[begin : begin + (3 << 20)]

    proxy.fault_of = often(7, 0.3)
    await store.put_multipart("large", pieces())
    assert await store.get_range("large", 0, len(content)) == content


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.DONE_BUT_500])
async def test_a_completion_whose_reply_was_lost_is_found_out(
    store: S3ObjectStore, proxy: FaultyProxy, fault: Fault
) -> None:
    async def pieces() -> AsyncIterator[Buffer]:
        yield bytes(PATIENT.multipart_part_size_bytes + 1)

    completions = itertools.count()
    proxy.fault_of = lambda method, target: (
        fault if method == "POST" and "uploadId" in target and next(completions) == 0 else Fault.NONE
    )
    written = await store.put_multipart("large", pieces())
    assert written.etag == (await store.get("large")).etag
    assert not written.is_confirmed, "nobody told its CRC"
    assert proxy.seen[fault] == 1


@pytest.mark.parametrize("ours", [True, False], ids=["completed by a lost attempt", "ended by another"])
async def test_an_upload_that_is_gone_is_told_by_its_object(ours: bool) -> None:
    async with serving() as (server, s3):

        async def pieces() -> AsyncIterator[Buffer]:
            yield bytes(QUICK.multipart_part_size_bytes + 1)

        def head(_: Request) -> bytes:
            nonce = server.requests[0].headers["x-amz-meta-tidelog-upload"] if ours else "another"
            return answer("200 OK", ETag='"whole"', x_amz_meta_tidelog_upload=nonce)

        server.script = [
            lambda _: answer("200 OK", b"<R><UploadId>id</UploadId></R>"),
            *[lambda _: answer("200 OK", ETag='"part"')] * 2,
            hang_up,
            error("404 Not Found", "NoSuchUpload"),
            head,
        ]
        if ours:
            assert (await s3.put_multipart("key", pieces())).etag == '"whole"'
        else:
            with pytest.raises(Unavailable, match="was not completed: begin it again"):
                await s3.put_multipart("key", pieces())


async def test_a_refusal_after_an_open_attempt_leaves_it_open(store: S3ObjectStore, proxy: FaultyProxy) -> None:
    faults = iter([Fault.LOST_REPLY, Fault.DENIED, Fault.DENIED])
    proxy.fault_of = lambda method, target: next(faults, Fault.NONE)
    with pytest.raises(Unavailable, match="after an attempt that may have succeeded"):
        await store.put("key", [b"x"])
    with pytest.raises(AccessDenied):
        await store.put("key", [b"y"])
    assert (await store.get("key")).data == b"x"


async def test_an_error_in_an_answer_that_began_well() -> None:
    late = b"<Error><Code>InternalError</Code><Message>because</Message></Error>"
    async with serving() as (server, s3):

        async def pieces() -> AsyncIterator[Buffer]:
            yield bytes(QUICK.multipart_part_size_bytes + 1)

        begun = b"<R><UploadId>id</UploadId></R>"
        ended = b"<CompleteMultipartUploadResult><ETag>whole</ETag></CompleteMultipartUploadResult>"
        server.script = [
            lambda _: answer("200 OK", begun),
            *[lambda _: answer("200 OK", ETag='"part"')] * 2,
            lambda _: answer("200 OK", late),  # S3 keeps a connection alive so, and has no status left for the failure
            lambda _: answer("200 OK", ended),
        ]
        assert (await s3.put_multipart("key", pieces())).etag == "whole"
        assert len(server.requests) == 5


async def test_answers_that_are_no_xml() -> None:
    async with serving() as (server, s3):
        server.script = [
            lambda _: answer("502 Bad Gateway", b"<html>nginx</html>", Content_Type="text/html"),
            lambda _: answer("503 Service Unavailable", b"upstream connect error"),
            lambda _: b"garbage\r\n\r\n" + CUT_SHORT,
            error("500 Internal Server Error", "InternalError"),
        ]
        assert (await s3.get("key")).data == b"content"


@pytest.mark.parametrize("seed", range(4))
async def test_the_metadata_log_knows_what_became_of_its_entries(
    store: S3ObjectStore, proxy: FaultyProxy, seed: int
) -> None:
    proxy.fault_of = often(seed, 0.5)
    started = await _controller(store, seed)
    topics = [f"topic{number}" for number in range(8)]
    await started.register_node(1, "wal")
    answers = await asyncio.gather(
        *(started.create_topics([TopicSpec(name=name, partition_count=2)]) for name in topics)
    )
    assert [list(found) for found in answers] == [[name] for name in topics]
    await started.close()
    assert sum(proxy.seen[fault] for fault in PASSING) > 3
    proxy.fault_of = lambda method, target: Fault.NONE
    again = await _controller(store, seed + 100)
    assert sorted(topic.name for topic in again.image.topics()) == topics
    await again.close()


async def _controller(store: S3ObjectStore, seed: int) -> Controller:
    return await Controller.start(
        store=store, paths=Paths("tide"), settings=ControllerSettings(), now_ms=lambda: 1, rng=random.Random(seed)
    )
