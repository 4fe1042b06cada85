"""The S3 store against a server that misbehaves on demand, and what only it does."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from s3stream.config import ObjectStoreSettings
from s3stream.objectstore import (
    AccessDenied,
    Archived,
    Buffer,
    NotFound,
    ObjectStoreError,
    PreconditionFailed,
    Unavailable,
    WriteConflict,
)
from s3stream.s3_body import copies
from tests.s3stream.moto import QUICK, new_bucket, open_bucket
from tests.s3stream.scripted import CUT_SHORT, Answer, Request, answer, error, hang_up, ok, serving
from wal.checksum import crc32c

PIECES = 10 << 20
IMPATIENT = ObjectStoreSettings(
    request_timeout_ms=200, deadline_ms=400, retry_first_delay_ms=1, retry_max_delay_ms=20
)  # fmt: skip


async def test_a_put_is_one_unsigned_body_with_its_checksum() -> None:
    async with serving() as (server, store):
        parts: list[Buffer] = [b"abc", memoryview(b"defg"), bytearray(300_000), b""]
        whole = b"".join(parts)
        assert await store.put("a/key", parts, crc32c=crc32c(whole)) == '"tag"'
        (request,) = server.requests
        assert (request.method, request.target, request.body) == ("PUT", "/bucket/a/key", whole)
        assert request.headers["x-amz-content-sha256"] == "unsigned-payload"
        assert (
            request.headers["x-amz-checksum-crc32c"].lower()
            == base64.b64encode(crc32c(whole).to_bytes(4, "big")).decode().lower()
        )
        assert "expect" not in request.headers
        assert "transfer-encoding" not in request.headers


async def test_conditions_are_headers() -> None:
    async with serving() as (server, store):
        await store.put_if_absent("key", [b"x"])
        await store.put_if_match("key", [b"x"], '"tag"')
        assert server.requests[0].headers["if-none-match"] == "*"
        assert server.requests[1].headers["if-match"] == '"tag"'


@pytest.mark.parametrize(
    "failure",
    [
        error("503 Slow Down", "SlowDown"),
        error("500 Internal Server Error", "InternalError"),
        error("429 Too Many", "TooManyRequests"),
        error("400 Bad Request", "RequestTimeout"),
        error("400 Bad Request", "BadDigest"),
        hang_up,
        lambda _: b'HTTP/1.1 200 OK\r\nETag: "tag"\r\nContent-Length: 100\r\n\r\n' + CUT_SHORT,
    ],
    ids=["slow down", "internal", "too many", "timeout", "damaged", "hung up", "cut short"],
)
async def test_what_may_pass_is_tried_again(failure: Answer) -> None:
    async with serving() as (server, store):
        server.script = [failure, failure]
        assert (await store.get("key")).data == b"content"
        assert store.retries >= 1  # aiohttp repeats a GET by itself where a connection it reused was closed
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("failure", "expected", "message"),
    [
        (error("404 Not Found", "NoSuchKey"), NotFound, "NoSuchKey"),
        (error("404 Not Found", "NoSuchBucket"), AccessDenied, "create the bucket"),
        (error("412 Precondition Failed", "PreconditionFailed"), PreconditionFailed, "412"),
        (error("409 Conflict", "ConditionalRequestConflict"), WriteConflict, "409"),
        (error("403 Forbidden", "AccessDenied"), AccessDenied, "allow it in the bucket policy"),
        (error("403 Forbidden", "RequestTimeTooSkewed"), AccessDenied, "clock"),
        (error("301 Moved Permanently", "PermanentRedirect"), AccessDenied, "another region"),
        (error("403 Forbidden", "InvalidObjectState"), Archived, "restore it, and end the lifecycle rule"),
        (error("400 Bad Request", "KMS.DisabledException"), AccessDenied, "enable the KMS key"),
        (error("400 Bad Request", "KMS.InvalidKeyUsageException"), AccessDenied, "see to the KMS key"),
        (error("403 Forbidden", "AccessDenied", "no kms:Decrypt"), AccessDenied, "in that of the KMS key"),
        (
            error("400 Bad Request", "XMinioAdminBucketQuotaExceeded"),
            AccessDenied,
            "the bucket is full: raise its quota",
        ),
        (error("400 Bad Request", "InvalidArgument"), ObjectStoreError, "InvalidArgument"),
    ],
)
async def test_what_will_not_pass_is_told_at_once(
    failure: Answer, expected: type[ObjectStoreError], message: str
) -> None:
    async with serving() as (server, store):
        server.script = [failure]
        with pytest.raises(expected, match=message) as caught:
            await store.put("key", [b"x"])
        assert type(caught.value) is expected
        assert store.retries == 0


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("301 Moved Permanently", "PermanentRedirect"),
        ("307 Temporary Redirect", "TemporaryRedirect"),
        ("400 Bad Request", "AuthorizationHeaderMalformed"),
    ],
)
async def test_a_bucket_in_another_region_is_asked_there(status: str, code: str) -> None:
    def in_ireland(request: Request) -> bytes:
        if "/eu-west-1/s3/" in request.headers["authorization"]:
            return ok(request)
        said = f"<Error><Code>{code}</Code><Message>not here</Message><Region>eu-west-1</Region></Error>"
        return answer(status, said.encode(), x_amz_bucket_region="eu-west-1")

    async with serving() as (server, store):
        server.otherwise = in_ireland
        await store.put("key", [b"one", b"two"])
        assert [request.body for request in server.requests] == [b"onetwo"] * 2, "all of it once more"
        await store.put_if_absent("key", [b"three"])
        assert (await store.get("key")).data == b"content"
        assert len(server.requests) == 4, "and at once the next time"
        assert await store.get_range("key", 0, 7) == b"content"
        assert store.retries == 0


async def test_if_match_on_nothing_is_a_failed_precondition() -> None:
    async with serving() as (server, store):
        server.script = [error("404 Not Found", "NoSuchKey")]
        with pytest.raises(PreconditionFailed):
            await store.put_if_match("key", [b"x"], '"tag"')


async def test_a_lost_reply_stays_open_until_the_deadline() -> None:
    async with serving(IMPATIENT) as (server, store):
        server.script = [hang_up] * 1000
        with pytest.raises(Unavailable, match="given up after 400 ms"):
            await store.put("key", [b"x"])
        assert len(server.requests) > 1


async def test_a_repeated_conditional_write_may_meet_its_own_first_attempt() -> None:
    async with serving() as (server, store):
        server.script = [hang_up, error("412 Precondition Failed", "PreconditionFailed")]
        with pytest.raises(PreconditionFailed):
            await store.put_if_absent("key", [b"x"])


async def test_a_server_that_does_not_answer_is_given_up_and_tried_again() -> None:
    async with serving(IMPATIENT) as (server, store):
        server.delay_s = 30.0
        with pytest.raises(Unavailable):
            await store.get("key")
        assert len(server.requests) == 2


async def test_a_body_may_take_long_as_long_as_it_gets_on() -> None:
    # On a slow link several large uploads share what there is: cut off by the clock, each would be sent for ever, and never arrive.
    patient = replace(IMPATIENT, request_timeout_ms=2_000, deadline_ms=2_000)
    async with serving(patient) as (server, store):
        server.pause_s = 0.01
        data = bytes(16 << 20)
        await store.put("key", [data])
        (request,) = server.requests
        assert len(request.body) == len(data)


@pytest.mark.parametrize("ranged", [True, False], ids=["a range", "a whole object"])
async def test_an_answer_may_take_long_as_long_as_it_gets_on(ranged: bool) -> None:
    patient = replace(IMPATIENT, request_timeout_ms=1_000, deadline_ms=1_000)
    async with serving(patient) as (server, store):
        server.otherwise = lambda _: answer("206 Partial Content" if ranged else "200 OK", bytes(PIECES), ETag='"tag"')
        server.write_pause_s = 0.01
        data = await store.get_range("key", 0, PIECES) if ranged else (await store.get("key")).data
        assert len(data) == PIECES
        assert len(server.requests) == 1


async def test_a_body_that_gets_on_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3stream.s3_progress._LEAST_BYTES_PER_S", 1 << 40)
    async with serving(IMPATIENT) as (server, store):
        server.pause_s = 0.01
        with pytest.raises(Unavailable, match="given up after 400 ms"):
            await store.put("key", [bytes(16 << 20)])


async def test_nobody_there() -> None:
    store = open_bucket("bucket", IMPATIENT, url="http://127.0.0.1:9")
    with pytest.raises(Unavailable):
        await store.get("key")
    await store.close()


def test_what_the_transport_gets_is_a_copy() -> None:
    memory = bytearray(b"x" * 1_000_000)
    parts: list[Buffer] = [b"head", memoryview(memory), b"", memoryview(memory)[:7], b"tail"]
    whole = b"".join(parts)
    pieces = list(copies(parts))
    memory[:] = bytes(len(memory))
    assert b"".join(pieces) == whole
    assert max(map(len, pieces)) <= 256 << 10


async def test_some_objects_that_cannot_be_deleted_are_an_error() -> None:
    failed = b"<DeleteResult><Error><Key>a</Key><Code>%s</Code><Message>no</Message></Error></DeleteResult>"
    async with serving(IMPATIENT) as (server, store):
        server.script = [lambda _: answer("200 OK", failed % b"InternalError")]
        await store.delete_many(["a"])
        assert len(server.requests) == 2
        server.script = [lambda _: answer("200 OK", failed % b"AccessDenied")]
        with pytest.raises(AccessDenied, match="delete a"):
            await store.delete_many(["a"])


async def test_requests_in_flight_are_bounded() -> None:
    async with serving(replace(QUICK, max_connections=3)) as (server, store):
        server.delay_s = 0.02
        in_flight: list[int] = []

        async def read() -> None:
            await store.get("key")

        tasks = [asyncio.create_task(read()) for _ in range(9)]
        while not all(task.done() for task in tasks):
            in_flight.append(len(server.requests) - sum(task.done() for task in tasks))
            await asyncio.sleep(0.001)
        assert max(in_flight) <= 3


async def test_large_objects_go_in_parts_of_one_size() -> None:
    store = await new_bucket(replace(QUICK, multipart_part_size_bytes=5 << 20))
    content = bytes(range(256)) * (47 << 10)  # 11.75 MiB

    async def pieces() -> AsyncIterator[Buffer]:
        for begin in range(0, len(content), 1_000_003):
            yield memoryview(content)[begin : begin + 1_000_003]

    etag = (await store.put_multipart("large", pieces())).etag
    assert etag.strip('"').endswith("-3")
    assert (await store.get("large")).data == content
    await store.close()


async def test_stale_uploads_are_aborted() -> None:
    store = await new_bucket()
    client = await store._open()
    for key in ("data/a", "data/b", "other/c"):
        await client.create_multipart_upload(Bucket=store._bucket, Key=key)
    # moto lets every upload begin at one time long ago.
    begun = [upload async for upload in store.list_multiparts("data/")]
    assert [upload.key for upload in begun] == ["data/a", "data/b"]
    assert 0 < begun[0].begun_ms <= await store.now_ms()
    assert await store.abort_stale_multiparts("data/", 0) == 0
    assert await store.abort_stale_multiparts("data/", await store.now_ms()) == 2
    assert await store.abort_stale_multiparts("", await store.now_ms()) == 1
    await store.close()


async def test_a_stale_upload_that_may_not_be_aborted_is_told() -> None:
    listed = (
        b"<ListMultipartUploadsResult><Upload><Key>data/a</Key><UploadId>id</UploadId>"
        b"<Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload></ListMultipartUploadsResult>"
    )
    async with serving() as (server, store):
        server.script = [lambda _: answer("200 OK", listed), error("404 Not Found", "NoSuchUpload")]
        assert await store.abort_stale_multiparts("data/", 1 << 60) == 0, "it has come to an end meanwhile"
        server.script = [lambda _: answer("200 OK", listed), error("403 Forbidden", "AccessDenied")]
        with pytest.raises(AccessDenied, match="abort multipart data/a: 403"):
            await store.abort_stale_multiparts("data/", 1 << 60)


async def test_listing_goes_on_page_by_page() -> None:
    store = await new_bucket()
    await asyncio.gather(*(store.put(f"many/{number:02d}", [b"x"]) for number in range(25)))
    client = await store._open()
    list_page = client.list_objects_v2
    pages: list[object] = []

    async def small_pages(**arguments: object) -> object:
        pages.append(arguments)
        return await list_page(**arguments, MaxKeys=10)

    client.list_objects_v2 = small_pages
    assert [found.key async for found in store.list("many/")] == [f"many/{number:02d}" for number in range(25)]
    assert len(pages) == 3
    await store.close()
