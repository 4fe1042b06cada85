"""Floods of connections and bytes against a real broker process: its memory stays within `memory.bytes`, and a well-behaved
client goes on as if nothing were (I13, I14)."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker.connection import MAX_OTHER_REQUEST_BYTES
from broker.record_walks import MAX_INFLATED_BYTES
from protocol.apis import encode_request
from protocol.compression import Codec
from protocol.messages.api_versions import ApiVersionsRequest
from protocol.messages.create_topics import CreatableTopic, CreatableTopicConfig, CreateTopicsRequest
from protocol.messages.find_coordinator import FindCoordinatorRequest
from protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from protocol.record_set import Record, build_batch
from protocol.runtime import encode_uvarint
from tests.broker.wire import batch, fetch_request, produce_request
from tests.crash.process import BrokerProcess, killed_at_last
from tests.hostile.bystander import TOPIC, Bystander
from tests.hostile.conftest import Connect, Hostile

MEMORY_BYTES = 384 << 20
PRODUCE, FETCH, METADATA, FIND_COORDINATOR, API_VERSIONS = 0, 1, 3, 10, 18


class Process:
    """The broker's process, and what it logged."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker

    @property
    def peak_bytes(self) -> int:
        """The most that was resident at any time (VmHWM)."""
        for line in Path(f"/proc/{self.broker.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
        raise AssertionError("no VmHWM")

    def lines(self, *words: str) -> list[str]:
        """Lines of its log that have all the words."""
        return [line for line in self.broker.log_path.read_text().splitlines() if all(word in line for word in words)]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A broker process with little memory."""
    directory = tmp_path_factory.mktemp("flooded")
    broker = BrokerProcess(
        directory,
        {
            "memory.bytes": MEMORY_BYTES,
            "wal.uri": f"{(directory / 'wal').as_uri()}?capacity=64MiB",
            "object.store.uri": (directory / "objects").as_uri(),
            "max.connections": 3_000,
            "connections.max.idle.ms": 30_000,
        },
    )
    with killed_at_last(broker):
        broker.start()
        broker.wait_ready()
        yield Process(broker)
        broker.stop()


@pytest.fixture(scope="module")
def good_client(process: Process) -> Iterator[Bystander]:
    """A real client at work during all of it."""
    bystander = Bystander(process.broker.bootstrap_servers)
    yield bystander
    bystander.finish()


@pytest.fixture(autouse=True)
def memory_is_bounded(process: Process, nobody_is_harmed: None) -> Iterator[None]:
    """After each test the process has never had more than it may."""
    yield
    peak_bytes = process.peak_bytes
    assert peak_bytes <= MEMORY_BYTES, f"{peak_bytes >> 20} MiB of {MEMORY_BYTES >> 20}"


@pytest.fixture
def connect(process: Process) -> Connect:
    """Opens connections to the process."""
    return lambda: Hostile(("127.0.0.1", process.broker.port))


def test_two_thousand_idle_and_half_open_connections(connect: Connect, good_client: Bystander) -> None:
    with ExitStack() as stack:
        for n in range(2_000):
            hostile = stack.enter_context(connect())
            if n % 2:
                hostile.send(b"\0\0\0"[: n % 4])  # not even a size
            if n % 10 == 0:
                hostile.socket.shutdown(socket.SHUT_WR)
        good_client.check()


def test_more_connections_than_there_may_be(connect: Connect, process: Process) -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(connect()) for _ in range(3_050)]
        assert crowd[-1].answer() == b""
    assert 1 <= len(process.lines("max.connections")) <= 60, "a line each, and not without end"


@pytest.mark.parametrize("sent_bytes", [100, 60_000], ids=["a little of it", "more of it"])
def test_two_hundred_connections_announce_100_mib_each(
    connect: Connect, good_client: Bystander, sent_bytes: int
) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            hostile = stack.enter_context(connect())
            hostile.send(struct.pack(">ih", 100 << 20, PRODUCE) + bytes(sent_bytes))
        good_client.check()


def test_clients_that_send_and_never_read(connect: Connect, good_client: Bystander) -> None:
    answers = b"".join(encode_request(METADATA, 9, 1, "deaf", MetadataRequest(topics=None))) * 2_000
    records = b"".join(encode_request(FETCH, 12, 1, "deaf", fetch_request(TOPIC, 0, partition_max_bytes=1 << 26)))
    with ExitStack() as stack:
        for n in range(60):
            hostile = stack.enter_context(connect())
            hostile.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            hostile.socket.settimeout(0.02)
            hostile.send(answers if n % 2 else records * 500)
        good_client.check()


def test_slowloris(connect: Connect, good_client: Bystander) -> None:
    """A byte now and then costs a connection, and nothing of anybody else's."""
    frame = b"".join(encode_request(API_VERSIONS, 0, 5, "slow", ApiVersionsRequest()))
    with ExitStack() as stack:
        slow = [stack.enter_context(connect()) for _ in range(300)]
        for at in range(len(frame)):
            for hostile in slow:
                hostile.send(frame[at : at + 1])
        for hostile in slow:
            assert hostile.frame()[:6] == struct.pack(">ih", 5, 0), "it is a request after all"
        good_client.check()


def test_requests_as_large_as_they_may_be(connect: Connect, good_client: Bystander, process: Process) -> None:
    """Decoded they take many times their size: those that are too many are refused, the others take turns."""
    few = FindCoordinatorRequest(coordinator_keys=[f"{n}" for n in range(40_000)])
    head = struct.pack(">hhihxb", FIND_COORDINATOR, 4, 1, -1, 0) + encode_uvarint(8_000_001)
    many = head + b"\x01" * 8_000_000  # eight million empty keys
    topics = MetadataRequest(
        topics=[MetadataRequestTopic(name=f"{n}") for n in range(40_000)], allow_auto_topic_creation=False
    )
    frames = [
        b"".join(encode_request(key, version, 1, "large", request))
        for key, version, request in ((FIND_COORDINATOR, 4, few), (METADATA, 9, topics))
    ]
    frames.append(struct.pack(">i", len(many)) + many)
    assert len(frames[-1]) <= MAX_OTHER_REQUEST_BYTES
    with ExitStack() as stack:
        for n in range(18):
            hostile = stack.enter_context(connect())
            hostile.send(frames[n % 3])
            if n % 10 == 0:
                good_client.check()
        good_client.check()


def test_bombs_on_a_compacted_topic(connect: Connect, good_client: Bystander) -> None:
    bomb = batch(bytes(MAX_INFLATED_BYTES), key=b"k", codec=Codec.ZSTD)
    many = build_batch([Record(key=b"")] * 50_000, codec=Codec.ZSTD)
    with ExitStack() as stack:
        config = CreatableTopicConfig(name="cleanup.policy", value="compact")
        topic = CreatableTopic(name="bombs", num_partitions=1, replication_factor=1, configs=[config])
        stack.enter_context(connect()).call("CreateTopics", 7, CreateTopicsRequest(topics=[topic], timeout_ms=5_000))
        frames = [b"".join(encode_request(PRODUCE, 9, 1, "x", produce_request("bombs", one))) for one in (bomb, many)]
        crowd = [stack.enter_context(connect()) for _ in range(20)]
        for n, hostile in enumerate(crowd):
            hostile.send(frames[n % 2])
        good_client.check()
        for hostile in crowd:
            hostile.frame()


def test_pipelines_of_tiny_batches(connect: Connect, good_client: Bystander) -> None:
    request = produce_request(TOPIC, batch(b""), partition=1)
    frames = b"".join(encode_request(PRODUCE, 9, 1, "x", request)) * 20_000
    with ExitStack() as stack:
        for _ in range(10):
            hostile = stack.enter_context(connect())
            hostile.socket.settimeout(1)
            hostile.send(frames)  # and never a look at the answers
        good_client.check()


def test_in_the_end_all_connections_are_gone(process: Process, good_client: Bystander) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        count = len(list(Path(f"/proc/{process.broker.pid}/fd").iterdir()))
        if count < 60:
            break
        time.sleep(0.1)
    assert count < 60
    assert not process.lines("Traceback")
    assert not process.lines("level=error")
