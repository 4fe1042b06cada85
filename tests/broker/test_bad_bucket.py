"""What `tidelog serve` says about a bucket that it cannot work with: one line that says what to do, and nothing is overwritten."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from broker.__main__ import main
from broker.config import BrokerSettings
from broker.node import Node
from protocol.errors import ErrorCode
from tests.broker.wire import Wire, batch, eventually
from tests.s3stream.faulty_proxy import Fault, FaultyProxy, proxied
from tests.s3stream.moto import endpoint_url, new_bucket, open_bucket
from tests.s3stream.scripted import Request, answer, listening

T = TypeVar("T")


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture
def proxy() -> Iterator[FaultyProxy]:
    with proxied(endpoint_url()) as started:
        yield started


def settings(tmp_path: Path, uri: str, **changes: Any) -> BrokerSettings:
    return BrokerSettings(
        listeners="PLAINTEXT://127.0.0.1:0",
        wal_uri=f"{(tmp_path / 'wal').as_uri()}?capacity=16MiB",
        object_store_uri=uri,
        memory_bytes=128 << 20,
    ).replace(**changes)


def uri_of(bucket: str, endpoint: str | None = None) -> str:
    return f"s3://{bucket}/tide?region=us-east-1&path_style=true&endpoint={endpoint or endpoint_url()}"


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def a_bucket() -> str:
    store = await new_bucket()
    await store.close()
    return store._bucket


async def a_used_bucket(tmp_path: Path, **changes: Any) -> str:
    """A cluster was here: a topic, a record, and an object that holds it."""
    bucket = await a_bucket()
    async with (
        Node(settings(tmp_path, uri_of(bucket), **changes)) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        assert (await wire.produce("t", batch(b"value"))).error_code == 0
    return bucket


async def contents(bucket: str) -> dict[str, bytes]:
    store = open_bucket(bucket)
    found = {found.key: (await store.get(found.key)).data async for found in store.list("")}
    await store.close()
    return found


async def delete(bucket: str, *keys: str) -> None:
    store = open_bucket(bucket)
    await store.delete_many(keys)
    await store.close()


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run `tidelog serve` until it gives up; returns the one line that it says."""

    def serve(uri: str, *more: str) -> str:
        given = [f"object.store.uri={uri}", f"wal.uri={(tmp_path / 'wal').as_uri()}?capacity=16MiB",
                 "memory.bytes=128MiB", "listeners=PLAINTEXT://127.0.0.1:0", *more]  # fmt: skip
        options = [part for setting in given for part in ("--set", setting)]
        serves = threading.Timer(60, signal.raise_signal, [signal.SIGINT])
        serves.start()
        status = main(["--log-level", "error", "serve", *options])
        serves.cancel()
        assert status == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("tidelog: ")
        return line

    return serve


# ---- refused by the store


def test_a_bucket_that_is_not_there(refused: Refused) -> None:
    line = refused(uri_of("nowhere"))
    assert "404 NoSuchBucket" in line
    assert "create the bucket, or correct the URI" in line


@pytest.mark.parametrize(("fault", "advice"), [
    (Fault.DENIED, "allow it in the bucket policy, or the policy of these credentials"),
    (Fault.SKEWED, "it is 3600 s ahead of the store's: set this machine's clock, by NTP"),
])  # fmt: skip
def test_credentials_and_clocks(refused: Refused, proxy: FaultyProxy, fault: Fault, advice: str) -> None:
    bucket = run(a_bucket())
    proxy.fault_of = lambda method, target: fault
    line = refused(uri_of(bucket, proxy.url))
    assert advice in line
    assert ("put, get, list and delete under" in line) is (fault is Fault.DENIED), "only where that helps"
    assert len(proxy.requests) == 1, "told at once"


@pytest.mark.parametrize(("code", "status", "advice"), [
    ("InvalidAccessKeyId", "403 Forbidden", "check the access key"),
    ("SignatureDoesNotMatch", "403 Forbidden", "check the secret key"),
    ("ExpiredToken", "400 Bad Request", "renew the credentials"),
    ("AuthorizationHeaderMalformed", "400 Bad Request", "the bucket is in eu-west-1: say region=eu-west-1 in the URI"),
    ("InvalidBucketName", "400 Bad Request", "correct the bucket's name in the URI"),
    ("KMS.NotFoundException", "400 Bad Request", "correct sse_kms_key_id in the URI"),
])  # fmt: skip
async def test_what_s3_says(code: str, status: str, advice: str, tmp_path: Path) -> None:
    def refuse(request: Request) -> bytes:
        region = "<Region>eu-west-1</Region>" if code == "AuthorizationHeaderMalformed" else ""
        return answer(status, f"<Error><Code>{code}</Code><Message>because</Message>{region}</Error>".encode())

    async with listening(refuse) as server:
        with pytest.raises(Exception, match=advice) as caught:
            async with Node(settings(tmp_path, uri_of("bucket", server.url))):
                pass
        assert code in str(caught.value)


@pytest.mark.parametrize(("method", "what"), [("PUT", "put tide/probe/"), ("POST", "delete 1 objects")])
def test_a_bucket_that_is_read_only_or_cannot_be_deleted_from(
    refused: Refused, proxy: FaultyProxy, tmp_path: Path, method: str, what: str
) -> None:
    bucket = run(a_used_bucket(tmp_path))
    before = run(contents(bucket))
    proxy.fault_of = lambda found, _: Fault.DENIED if found == method else Fault.NONE
    line = refused(uri_of(bucket, proxy.url))
    assert what in line
    assert "put, get, list and delete under 'tide' must be allowed" in line
    after = run(contents(bucket))
    assert {key: after.pop(key) for key in before} == before
    assert all(key.startswith("tide/probe/") for key in after)


# ---- not this node's


def test_a_bucket_of_another_cluster(refused: Refused, tmp_path: Path) -> None:
    bucket = run(a_used_bucket(tmp_path, cluster_id="theirs"))
    before = run(contents(bucket))
    line = refused(uri_of(bucket), "cluster.id=ours")
    assert "belongs to cluster theirs, and cluster.id is configured as ours" in line
    assert "point this node at its own bucket or prefix, or, if the bucket is the right one, set cluster.id" in line
    assert run(contents(bucket)) == before


def test_a_wal_of_another_bucket(refused: Refused, tmp_path: Path) -> None:
    run(a_used_bucket(tmp_path))
    other = run(a_used_bucket(tmp_path / "other"))
    before = run(contents(other))
    line = refused(uri_of(other))
    assert "cluster" in line
    assert run(contents(other)) == before


# ---- deleted by hand


@pytest.mark.parametrize(("keys", "named", "advice"), [
    (["tide/cluster"], "tide/cluster", "Put it back"),
    (["tide/metadata/log/00000000000000000001"], "tide/metadata/log/00000000000000000001", "does something else delete"),
], ids=["the cluster's marker", "an entry of the metadata log"])  # fmt: skip
def test_metadata_deleted_by_hand(refused: Refused, tmp_path: Path, keys: list[str], named: str, advice: str) -> None:
    bucket = run(a_used_bucket(tmp_path))
    run(delete(bucket, *keys))
    before = run(contents(bucket))
    line = refused(uri_of(bucket))
    assert named in line
    assert advice in line
    assert run(contents(bucket)) == before


def test_the_newest_metadata_deleted_by_hand(
    refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = run(a_used_bucket(tmp_path))
    *_, first, second = sorted(key for key in run(contents(bucket)) if "/metadata/log/" in key)
    run(delete(bucket, first, second))
    before = run(contents(bucket))
    line = refused(uri_of(bucket))
    assert f"the 2 entries from {first} on are missing" in line
    assert "Put back what was deleted" in line
    assert run(contents(bucket)) == before, "the next entry would have been written in the place of a lost one"
    assert main(["verify", "--bucket", uri_of(bucket)]) == 1
    assert f"FINDING log-entry-missing: {first}" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "message"), [
    ("cluster", "tide/cluster cannot be decoded"),
    ("metadata/leader", "tide/metadata/leader cannot be decoded"),
    ("metadata/log/00000000000000000001", "tide/metadata/log/00000000000000000001 is not an entry of the metadata log"),
])  # fmt: skip
def test_metadata_cut_short(refused: Refused, tmp_path: Path, key: str, message: str) -> None:
    bucket = run(a_used_bucket(tmp_path))

    async def cut_short() -> None:
        store = open_bucket(bucket)
        await store.put(f"tide/{key}", [b""])
        await store.close()

    run(cut_short())
    before = run(contents(bucket))
    line = refused(uri_of(bucket))
    assert message in line
    assert "restore it from the bucket's versions or a backup" in line
    assert run(contents(bucket)) == before


def test_the_whole_metadata_log_deleted_by_hand(refused: Refused, tmp_path: Path) -> None:
    bucket = run(a_used_bucket(tmp_path))
    run(delete(bucket, *(key for key in run(contents(bucket)) if "/metadata/" in key)))
    before = run(contents(bucket))
    line = refused(uri_of(bucket))
    assert "the metadata log is gone" in line
    assert run(contents(bucket)) == before


async def test_a_data_object_deleted_by_hand_costs_its_partition_only(tmp_path: Path) -> None:
    bucket = await a_used_bucket(tmp_path)
    gone = [key for key in await contents(bucket) if "/data/" in key]
    assert gone
    await delete(bucket, *gone)
    async with (
        Node(settings(tmp_path, uri_of(bucket))) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("other")
        assert (await wire.produce("other", batch(b"value"))).error_code == 0
        assert await wire.fetch_all("other") == [b"value"]
        await eventually(lambda: node.running.store.failures["get_tail", "NotFound"] > 0, "a look at what is gone")


async def test_what_a_rule_moved_to_an_archive_is_named_and_read_once_it_is_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = await a_used_bucket(tmp_path)
    store = open_bucket(bucket)
    client = await store._open()
    moved = [key for key in await contents(bucket) if "/data/" in key]
    for key in moved:
        await client.copy_object(Bucket=bucket, Key=key, CopySource=f"{bucket}/{key}", StorageClass="GLACIER")
    async with (
        Node(settings(tmp_path, uri_of(bucket))) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("other")
        assert (await wire.produce("other", batch(b"value"))).error_code == 0, "others are not concerned"
        for _ in range(3):
            assert (await wire.fetch("t", 0)).error_code == ErrorCode.KAFKA_STORAGE_ERROR
        (told,) = [each.getMessage() for each in caplog.records if each.getMessage().startswith("records are damaged")]
        assert "t-0, offsets 0 to 0: object" in told
        assert "InvalidObjectState" in told
        assert "restore it, and end the lifecycle rule that moved it there" in told
        inspected = ["inspect", "partition", "t-0", "--check", "--bucket", uri_of(bucket)]
        assert await asyncio.to_thread(main, inspected) == 1
        assert "DAMAGE: t-0, offsets 0 to 0 cannot be read" in capsys.readouterr().out

        for key in moved:
            await client.restore_object(Bucket=bucket, Key=key, RestoreRequest={"Days": 1})
        assert await wire.fetch_all("t") == [b"value"]
        assert not node.running.storage.reader.damage
    await store.close()


async def produce_and_crash(tmp_path: Path, bucket: str, **changes: Any) -> None:
    """A record is in the WAL alone."""
    crashing = settings(tmp_path, uri_of(bucket), shutdown_timeout_ms=100, upload_interval_ms=60_000, **changes)
    async with Node(crashing) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        assert (await wire.produce("t", batch(b"value"))).error_code == 0
        node.running.store.failing = True  # nothing is closed in order: partitions stay open on the WAL


def in_bucket(bucket: str) -> str:
    return f"{uri_of(bucket)}&batch_interval_ms=10"


def test_all_metadata_deleted_while_records_are_in_a_wal_in_the_bucket_alone(refused: Refused, tmp_path: Path) -> None:
    bucket = run(a_bucket())
    run(produce_and_crash(tmp_path, bucket, wal_uri=in_bucket(bucket)))
    run(delete(bucket, *(key for key in run(contents(bucket)) if "/metadata/" in key)))
    before = run(contents(bucket))
    line = refused(uri_of(bucket), f"wal.uri={in_bucket(bucket)}")
    assert "the metadata log is gone" in line
    assert run(contents(bucket)) == before


def test_all_metadata_deleted_while_records_are_in_the_wal_alone(refused: Refused, tmp_path: Path) -> None:
    bucket = run(a_bucket())
    run(produce_and_crash(tmp_path, bucket))
    whole = run(contents(bucket))
    run(delete(bucket, *(key for key in whole if "/metadata/" in key)))
    line = refused(uri_of(bucket))
    assert "the WAL holds records of stream 1, and the metadata know of none" in line
    assert "Put back what was deleted" in line

    async def put_back() -> None:
        store = open_bucket(bucket)
        await store.delete_many([key for key in await contents(bucket) if key not in whole])
        for key, data in whole.items():
            await store.put(key, [data])
        await store.close()
        async with (
            Node(settings(tmp_path, uri_of(bucket))) as node,
            await Wire.connect(node.bootstrap_servers) as wire,
        ):
            assert await wire.fetch_all("t") == [b"value"]

    run(put_back())


def test_all_slots_of_a_wal_deleted_by_hand(refused: Refused, tmp_path: Path) -> None:
    bucket = run(a_bucket())
    run(produce_and_crash(tmp_path, bucket, wal_uri=in_bucket(bucket)))
    run(delete(bucket, *(key for key in run(contents(bucket)) if "/wal/log/" in key)))
    before = run(contents(bucket))
    line = refused(uri_of(bucket), f"wal.uri={in_bucket(bucket)}")
    assert "is of epoch 0, but was of epoch 1 before" in line
    assert "put back what was deleted" in line
    assert "tidelog wal abandon" in line
    after = run(contents(bucket))
    assert after.pop("tide/metadata/leader") != before.pop("tide/metadata/leader"), (
        "the controller decided it, which took office"
    )
    assert {key: after[key] for key in before} == before
    assert all("/metadata/log/" in key for key in after.keys() - before.keys())


def test_the_name_of_a_wal_in_the_bucket_deleted_by_hand(refused: Refused, tmp_path: Path) -> None:
    bucket = run(a_bucket())
    wal_uri = in_bucket(bucket)
    run(produce_and_crash(tmp_path, bucket, wal_uri=wal_uri))
    (name,) = (key for key in run(contents(bucket)) if "/wal/node/" in key)
    run(delete(bucket, name))
    before = run(contents(bucket))
    del before["tide/metadata/leader"]  # to refuse a node is a decision of whoever leads
    line = refused(uri_of(bucket), f"wal.uri={wal_uri}")
    assert "tidelog wal abandon" in line
    assert before.items() <= run(contents(bucket)).items(), "nothing was overwritten"


@pytest.mark.parametrize("command", [["verify"], ["inspect", "metadata"], ["inspect", "partition", "t-0"]])
def test_tools_say_it_in_one_line_too(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--bucket", uri_of("nowhere")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "create the bucket, or correct the URI" in line


# ---- accepted, with a word in the log


async def test_a_lifecycle_rule_that_will_delete_records_is_told_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await new_bucket()
    client = await store._open()
    rule = {"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": "ti"}, "Expiration": {"Days": 90}}
    await client.put_bucket_lifecycle_configuration(Bucket=store._bucket, LifecycleConfiguration={"Rules": [rule]})
    async with Node(settings(tmp_path, uri_of(store._bucket))):
        await eventually(
            lambda: "lifecycle rule 'tidy' deletes objects below 'ti' after 90 days" in caplog.text, "a warning"
        )
    await store.close()
