"""Names, documents and values of metrics."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from broker.exposition.described import Described
from broker.exposition.table import SECTIONS, as_markdown
from broker.metrics import CLOSE_CAUSES
from broker.node import Node
from protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from s3stream.metered import Purpose, Used
from tests.broker.conftest import StartNode
from tests.broker.scraping import scrape
from tests.broker.wire import Wire, batch, eventually, fetch_request, produce_request

HTTP = "HTTP://127.0.0.1:0"

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"

METRICS = [described for _, section in SECTIONS for described in section]


@pytest.mark.parametrize("described", METRICS, ids=lambda described: described.name)
def test_names_follow_the_conventions(described: Described) -> None:
    """The rules of `promtool check metrics` and of Prometheus's page on naming."""
    name = described.name
    assert re.fullmatch(r"tidelog_[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
    assert (described.kind == "counter") == name.endswith("_total"), "counters, and only they, end in _total"
    assert not re.search(r"_(bucket|count|sum)$", name), "what a histogram's series end in"
    words = name.split("_")
    assert not {"counter", "gauge", "histogram", "summary", "metric"} & set(words), "the type is not part of the name"
    units = {"ms", "us", "ns", "milliseconds", "microseconds", "minutes", "hours", "kb", "mb", "kib", "mib", "percent"}
    assert not units & set(words), "base units: seconds, bytes"
    for unit in ("seconds", "bytes"):
        assert unit not in words or name.removesuffix("_total").endswith(f"_{unit}"), "the unit comes last"
    assert described.kind in ("counter", "gauge", "histogram")
    assert described.help.endswith("."), "help is a sentence"
    assert "\n" not in described.help
    assert "|" not in described.help, "it goes into a table"
    for label in described.labels:
        assert re.fullmatch(r"[a-z][a-z_]*", label)
        assert label not in ("le", "quantile", "job", "instance"), "others use these"
        assert label not in words, "a label is not repeated in the name"


def test_names_are_unique() -> None:
    names = [described.name for described in METRICS]
    assert len(set(names)) == len(names)


def test_the_document_is_what_the_table_says() -> None:
    assert DOCUMENT.read_text() == as_markdown(), "run `make docs`"


async def test_every_metric_is_exported(start_node: StartNode) -> None:
    async with start_node(metrics_listeners=HTTP) as node:
        page = await scrape(node)
    for described in METRICS:
        name = described.name.removesuffix("_total") if described.kind == "counter" else described.name
        assert page.types.get(name) == described.kind, described.name
    assert page("process_resident_memory_bytes") > 1 << 20
    assert page("tidelog_memory_limit_bytes") == 128 << 20
    for pool in ("arena", "read", "receive", "send", "index_cache"):
        assert 0 <= page("tidelog_buffer_used_bytes", pool=pool) <= page("tidelog_buffer_limit_bytes", pool=pool)


async def test_what_clients_do_is_counted(start_node: StartNode) -> None:
    async with (
        start_node(metrics_listeners=HTTP, metrics_max_topics=1) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("orders")
        await wire.create_topic("others")
        data = batch(b"a", b"b", b"c")
        for topic in ("orders", "orders", "others", "missing"):
            await wire.call("Produce", 9, produce_request(topic, data))
        for topic in ("orders", "missing"):
            await wire.fetch(topic)
        asked = MetadataRequest(topics=[MetadataRequestTopic(name="orders")])
        for _ in range(2):  # the second is answered from the cache of answers
            await wire.call("Metadata", 9, asked)

        page = await scrape(node)
        assert page("tidelog_received_records_total", topic="orders") == 6
        assert page("tidelog_received_bytes_total", topic="orders") == 2 * len(data)
        assert page("tidelog_sent_bytes_total", topic="orders") == 2 * len(data)
        assert page("tidelog_received_records_total", topic="(other)") == 3
        for api, count in (("Produce", 4), ("Fetch", 2), ("Metadata", 2), ("CreateTopics", 2)):
            assert page("tidelog_request_duration_seconds_count", api=api) == count, api
        for api in ("Produce", "Fetch"):
            assert page("tidelog_request_errors_total", api=api, error="UNKNOWN_TOPIC_OR_PARTITION") == 1
        assert page("tidelog_fetch_reads_total", source="log_cache") == 1
        assert page("tidelog_connections") == page("tidelog_connections_opened_total") == 1
        assert page("tidelog_wal_unuploaded_bytes") == 3 * len(data)
        assert page("tidelog_wal_unuploaded_age_seconds") > 0
        assert page("tidelog_wal_commit_batches_sum") == 3
        written = page("tidelog_wal_commit_duration_seconds_count", kind="disk")
        assert written == page("tidelog_wal_commit_size_bytes_count") > 0
        assert page("tidelog_object_store_request_duration_seconds_count", operation="put_if_absent") > 0


async def test_what_is_uploaded_and_read_back_is_counted(start_node: StartNode) -> None:
    async with (
        start_node(metrics_listeners=HTTP) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        await wire.produce("t", batch(b"a"))
    async with (
        start_node(metrics_listeners=HTTP) as node,  # its caches are empty
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        assert await wire.fetch_values("t") == [b"a"]
        assert await wire.fetch_values("t") == [b"a"]
        page = await scrape(node)
        assert page("tidelog_fetch_reads_total", source="objects") == 2
        assert page("tidelog_block_cache_lookups_total", result="miss") == 1
        assert page("tidelog_block_cache_lookups_total", result="hit") == 1
        assert page("tidelog_objects", state="referenced") == 1
        assert page("tidelog_object_store_transferred_bytes_total", operation="get_range") > 0
        billed = "tidelog_object_store_billed_requests_total"
        assert page(billed, purpose="read", request="get") == 3  # index, state and block
        assert page(billed, purpose="metadata", request="put") > 0
        assert page(billed, purpose="probe", request="put") > 0
        assert page("tidelog_object_store_received_bytes_total", purpose="read") > 0
        assert page("tidelog_object_store_sent_bytes_total", purpose="upload") == 0

        await wire.produce("t", batch(b"b"))
        node.running.storage.seal()
        uploads = node.running.storage.uploads
        await eventually(lambda: uploads.commit_durations.count == 1, "an upload")
        assert uploads.put_durations.count == uploads.uploaded_objects == 1
        assert node.running.usage.of(Purpose.UPLOAD) == Used(puts=1, sent_bytes=uploads.uploaded_bytes)
        assert node.running.storage.unuploaded_bytes == node.running.storage.unuploaded_age_s == 0


async def test_the_time_that_a_fetch_waits_is_not_its_duration(start_node: StartNode) -> None:
    async with (
        start_node(metrics_listeners=HTTP) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
        await Wire.connect(node.bootstrap_servers) as other,
    ):
        await wire.create_topic("t")
        wire.send("Fetch", 12, fetch_request("t", max_wait_ms=60_000))
        waiting = node.running.broker.waiting_fetches
        await eventually(lambda: waiting.fetch_count == 1, "a fetch that waits")
        await asyncio.sleep(0.3)
        await other.produce("t", batch(b"a"))
        await wire.receive()
        assert waiting.fetch_count == 0
        page = await scrape(node)
        assert page("tidelog_fetches_delayed_total") == page("tidelog_fetch_wait_seconds_count") == 1
        assert page("tidelog_fetch_wait_seconds_sum") >= 0.3
        assert page("tidelog_request_duration_seconds_count", api="Fetch") == 1
        duration_s = page("tidelog_request_duration_seconds_sum", api="Fetch")
        assert duration_s + page("tidelog_fetch_wait_seconds_sum") > duration_s > 0


@pytest.mark.parametrize(
    ("sent", "cause"), [(b"GET / HTTP/1.1\r\n\r\n", "request"), (b"\0\0\0\x0b\0\x63\0\0\0\0\0\1\xff\xff\0", "request")]
)
async def test_connections_that_the_broker_ends_are_counted(node: Node, sent: bytes, cause: str) -> None:
    async with await Wire.connect(node.bootstrap_servers) as wire:
        wire.writer.write(sent)
        assert await wire.closed_by_broker()
    closed = node.running.server.metrics.connections_closed
    assert +closed == {cause: 1}
    assert set(closed) == set(CLOSE_CAUSES)


async def test_an_outage_of_the_store_is_seen(start_node: StartNode) -> None:
    async with (
        start_node(metrics_listeners=HTTP, upload_interval_ms=50) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        store, storage = node.running.store, node.running.storage
        await wire.produce("t", batch(b"a"))
        await eventually(
            lambda: storage.uploads.uploaded_objects, "an upload, for which ids of objects are had in advance"
        )
        store.failing = True
        await wire.produce("t", batch(b"b"))
        await eventually(lambda: storage.uploads.failed_attempts > 2, "attempts")
        page = await scrape(node)
        assert page("tidelog_wal_unuploaded_bytes") > 0
        assert page("tidelog_wal_unuploaded_age_seconds") > 0.05
        assert page("tidelog_object_store_request_errors_total", operation="put", error="Unavailable") > 0
        assert page("tidelog_upload_retries_total") > 2
        store.failing = False
        await eventually(lambda: not storage.unuploaded_bytes, "the upload")
