"""Every line of Python's own standard library through the broker, and back out of its objects.

`make demo` does, with a broker process of its own (an embedded `Node` whose calls of the object store are counted) and a
directory that it removes afterwards:

1. Send each line of each source file of this machine's standard library as one record, its file's name as the key,
   with confluent-kafka (librdkafka), lz4 and an idempotent producer.
2. Wait until the write-ahead log is trimmed: all of it is in objects.
3. Restart the broker, so that every cache is empty.
4. Read everything back, check that each file's lines come in order, and compare a SHA-256 over all content.
5. Read it once more with a consumer group of two processes, kill one of them in the middle (SIGKILL), and see that the other
   takes over its partitions where it last committed: no line is left out, and only what was read after that commit is read twice.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tqdm import tqdm

from broker.config import settings_from
from broker.node import Node
from s3stream.instrumented import InstrumentedObjectStore
from s3stream.objectstore import ObjectStore
from wal.header import RING_START_BYTES, WalHeader, choose_header

TOPIC = "standard-library"
PARTITIONS = 6
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
TRIM_TIMEOUT_S = 60.0
READ_TIMEOUT_S = 120.0

GROUP = "demo"
SESSION_TIMEOUT_MS = 6_000
"""How long the coordinator waits for a member that says nothing: Kafka's least by default, so that the demo is not all waiting."""
COMMIT_EVERY = 20_000
KILL_AFTER_SHARE = 0.1
"""Of all lines: what each member has read when one of them is killed."""
SEEN = struct.Struct("<iqI")
"""What a member writes down of a line: partition, offset, CRC-32 of key and value."""

SETTINGS = """\
"node.id" = 1
listeners = "PLAINTEXT://127.0.0.1:{port}"
"object.store.uri" = "file://{directory}/objects"
"wal.uri" = "file://{directory}/wal?capacity=256MiB"
"upload.size.bytes" = "2MiB"
"upload.interval.ms" = 1000
"""


PUT_NAMES = ("put", "put_if_absent", "put_if_match", "put_multipart")


class DemoFailed(Exception):
    """What came back is not what went in, or the broker did not do its part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """The lines of every source file, by the file's name."""

    files: Mapping[str, list[bytes]]

    @property
    def line_count(self) -> int:
        return sum(len(lines) for lines in self.files.values())

    @property
    def size_bytes(self) -> int:
        return sum(len(line) for lines in self.files.values() for line in lines)

    def sha256(self) -> str:
        """Of all names and lines, in the order of the names."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            digest.update(name.encode() + b"\0")
            digest.update(b"".join(self.files[name]))
        return digest.hexdigest()


def standard_library() -> Library:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = {
        str(path.relative_to(root)): path.read_bytes().splitlines(keepends=True)
        for path in sorted(root.rglob("*.py"))
        if not {"site-packages", "dist-packages"} & set(path.parts)
    }
    return Library(files={name: lines for name, lines in files.items() if lines})


@dataclass(slots=True)
class RunningBroker:
    """A broker process."""

    start_s: float
    """From the start of the process to the first connection that it took."""
    calls: Counter[str]
    """Calls of the object store, by name; known when the broker has stopped, as is what follows."""
    object_count: int = 0
    """Objects that the metadata refers to."""
    object_bytes: int = 0


@contextmanager
def running_broker(directory: Path, port: int) -> Iterator[RunningBroker]:
    """A broker in a process of its own (see `serve`), stopped with SIGTERM at the end."""
    settings = directory / "tidelog.toml"
    settings.write_text(SETTINGS.format(port=port, directory=directory))
    log_path = directory / "broker.log"
    with log_path.open("ab") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(settings)], stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        while not _accepts(port):
            if process.poll() is not None or time.perf_counter() - began > START_TIMEOUT_S:
                raise DemoFailed(f"the broker did not start:\n{log_path.read_text()}")
            time.sleep(0.01)
        broker = RunningBroker(start_s=time.perf_counter() - began, calls=Counter())
        yield broker
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=STOP_TIMEOUT_S)
        if process.returncode != 0:
            raise DemoFailed(f"the broker did not stop in order:\n{log_path.read_text()}")
        told = json.loads(output)
        broker.calls.update(told["calls"])
        broker.object_count, broker.object_bytes = told["objects"], told["bytes"]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


async def serve(config: Path) -> None:
    """What `tidelog serve -c` does, with calls of the object store and objects counted: one line of JSON at the end."""
    stores: list[InstrumentedObjectStore] = []

    def instrumented(store: ObjectStore) -> ObjectStore:
        stores.append(InstrumentedObjectStore(store))
        return stores[-1]

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Node(settings_from(file=config), wrap_store=instrumented) as node:
        await stop.wait()
        objects = node.running.storage.metadata.live_objects()
    sizes = [found.size_bytes for found in objects]
    print(json.dumps({"calls": stores[0].requests, "objects": len(sizes), "bytes": sum(sizes)}))


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def produce(bootstrap: str, library: Library) -> float:
    """Send all lines; the seconds it took until all were acknowledged."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    new = NewTopic(TOPIC, num_partitions=PARTITIONS, replication_factor=1)
    admin.create_topics([new])[TOPIC].result(START_TIMEOUT_S)
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "compression.type": "lz4",
            "enable.idempotence": True,
            "linger.ms": 20,
            "queue.buffering.max.messages": 500_000,
        }
    )
    problems: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Any) -> None:
        if error is not None:
            problems.append(error)

    began = time.perf_counter()
    with tqdm(total=library.size_bytes, unit="B", unit_scale=True, desc="produce") as bar:
        for name, lines in library.files.items():
            for line in lines:
                while True:
                    try:
                        producer.produce(TOPIC, value=line, key=name, on_delivery=delivered)
                        break
                    except BufferError:  # librdkafka's queue is full: let it send
                        producer.poll(0.1)
            producer.poll(0)
            bar.update(sum(map(len, lines)))
        left = producer.flush(READ_TIMEOUT_S)
    if problems or left:
        raise DemoFailed(f"{left} records were not acknowledged; errors: {problems[:3]}")
    return time.perf_counter() - began


def consume(bootstrap: str, library: Library) -> tuple[Library, float]:
    """Read until every line is back, in its file's order; what was read and the seconds it took."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "none", "enable.auto.commit": False, "check.crcs": True}
    )
    found: dict[str, list[bytes]] = {}
    began = time.perf_counter()
    try:
        consumer.assign([TopicPartition(TOPIC, partition, 0) for partition in range(PARTITIONS)])
        missing = library.line_count
        with tqdm(total=library.size_bytes, unit="B", unit_scale=True, desc="consume") as bar:
            while missing:
                messages = consumer.consume(10_000, timeout=1.0)
                if not messages and time.perf_counter() - began > READ_TIMEOUT_S:
                    raise DemoFailed(f"{missing} lines did not come back within {READ_TIMEOUT_S} s")
                for message in messages:
                    if message.error():
                        raise KafkaException(message.error())
                    name, line = message.key().decode(), message.value()
                    lines = found.setdefault(name, [])
                    if len(lines) >= len(library.files[name]) or library.files[name][len(lines)] != line:
                        raise DemoFailed(f"{name}: line {len(lines) + 1} is not the one that was sent there")
                    lines.append(line)
                missing -= len(messages)
                bar.update(sum(len(message.value()) for message in messages))
    finally:
        consumer.close()
    return Library(files=found), time.perf_counter() - began


def member(bootstrap: str, journal: Path) -> None:
    """One process of the group: writes down what it reads, then commits; leaves in order on SIGTERM."""
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": GROUP,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": SESSION_TIMEOUT_MS,
            "heartbeat.interval.ms": 500,
        }
    )
    consumer.subscribe([TOPIC])
    uncommitted = 0
    with journal.open("ab", buffering=0) as file:
        while not stopping:
            messages = consumer.consume(1_000, timeout=0.2)
            seen = bytearray()
            for message in messages:
                if message.error():
                    raise KafkaException(message.error())
                crc = zlib.crc32(message.value(), zlib.crc32(message.key()))
                seen += SEEN.pack(message.partition(), message.offset(), crc)
            file.write(seen)
            uncommitted += len(messages)
            if uncommitted >= COMMIT_EVERY or (uncommitted and not messages):
                try:
                    consumer.commit(asynchronous=False)
                except KafkaException as error:
                    if not error.args[0].retriable() and error.args[0].code() != KafkaError.ILLEGAL_GENERATION:
                        raise  # else a rebalance came between: whoever has the partition now reads on from the last commit
                uncommitted = 0
    consumer.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRead:
    """What a group of two read, of which one was killed."""

    lines: Mapping[tuple[int, int], int]
    """CRC by partition and offset."""
    before_kill: int
    repeated: int
    takeover_s: float
    """From the kill to the first line that the other read of the dead one's partitions."""
    seconds: float


def consume_as_group(bootstrap: str, library: Library, directory: Path) -> GroupRead:
    """Step 5."""
    journals = [directory / "member-1", directory / "member-2"]
    for journal in journals:
        journal.write_bytes(b"")
    began = time.perf_counter()
    processes = [
        subprocess.Popen([sys.executable, __file__, "--member", bootstrap, str(journal)]) for journal in journals
    ]
    doomed, survivor = processes
    try:
        _wait(
            lambda: all(_lines_in(journal) >= library.line_count * KILL_AFTER_SHARE for journal in journals),
            "both members read",
            processes,
        )
        doomed.kill()
        doomed.wait()
        killed = time.perf_counter()
        lost = _journal(journals[0])
        before_kill = len(lost) + _lines_in(journals[1])
        partitions = {partition for partition, _, _ in lost}
        at = _lines_in(journals[1])
        _wait(
            lambda: any(partition in partitions for partition, _, _ in _journal(journals[1])[at:]),
            "the survivor takes over",
            [survivor],
        )
        takeover_s = time.perf_counter() - killed
        _wait(lambda: _committed(bootstrap) == library.line_count, "everything is committed", [survivor])
        survivor.send_signal(signal.SIGTERM)
        if survivor.wait(STOP_TIMEOUT_S) != 0:
            raise DemoFailed("the surviving member failed")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    lines: dict[tuple[int, int], int] = {}
    repeated = 0
    for journal in journals:
        for partition, offset, crc in _journal(journal):
            repeated += (partition, offset) in lines
            if lines.setdefault((partition, offset), crc) != crc:
                raise DemoFailed(f"partition {partition}, offset {offset} was read twice and differed")
    return GroupRead(
        lines=lines,
        before_kill=before_kill,
        repeated=repeated,
        takeover_s=takeover_s,
        seconds=time.perf_counter() - began,
    )


def _lines_in(journal: Path) -> int:
    return journal.stat().st_size // SEEN.size


def _journal(journal: Path) -> list[tuple[int, int, int]]:
    data = journal.read_bytes()
    return list(
        SEEN.iter_unpack(data[: len(data) // SEEN.size * SEEN.size])
    )  # the killed one may have torn its last write


def _committed(bootstrap: str) -> int:
    """Lines of all partitions that the group has committed."""
    asker = Consumer({"bootstrap.servers": bootstrap, "group.id": GROUP})
    try:
        places = asker.committed([TopicPartition(TOPIC, partition) for partition in range(PARTITIONS)], timeout=10)
        return sum(max(place.offset, 0) for place in places)
    finally:
        asker.close()


def _wait(condition: Callable[[], bool], what: str, processes: Iterable[subprocess.Popen[bytes]]) -> None:
    deadline = time.perf_counter() + READ_TIMEOUT_S
    while not condition():
        if any(process.poll() is not None for process in processes):
            raise DemoFailed(f"a member of the group ended before: {what}")
        if time.perf_counter() > deadline:
            raise DemoFailed(f"waited {READ_TIMEOUT_S:.0f} s in vain until {what}")
        time.sleep(0.05)


def check_group(read: GroupRead, library: Library) -> None:
    """Every line was read, each with what it holds."""
    if len(read.lines) != library.line_count:
        raise DemoFailed(f"the group read {len(read.lines):,} lines of {library.line_count:,}")
    expected = Counter(
        zlib.crc32(line, zlib.crc32(name.encode())) for name, lines in library.files.items() for line in lines
    )
    if Counter(read.lines.values()) != expected:
        raise DemoFailed("what the group read is not what was sent")


def wal_header(directory: Path) -> WalHeader:
    """The header of the write-ahead log: where it begins (trim offset) and where it is known to end."""
    with (directory / "wal" / "wal").open("rb") as file:
        return choose_header(file.read(RING_START_BYTES))


def wait_until_trimmed(directory: Path) -> float:
    """Wait until nothing is left in the WAL that is not in an object; the seconds it took."""
    began = time.perf_counter()
    trimmed, settled_since = -1, began
    while time.perf_counter() - began < TRIM_TIMEOUT_S:
        offset = wal_header(directory).trim_offset
        now = time.perf_counter()
        if offset != trimmed:
            trimmed, settled_since = offset, now
        if trimmed > 0 and now - settled_since > 2.5:
            return settled_since - began
        time.sleep(0.05)
    raise DemoFailed(f"the WAL was not trimmed within {TRIM_TIMEOUT_S} s: trim offset {trimmed}")


def run(directory: Path) -> None:
    library = standard_library()
    megabytes = library.size_bytes / 1e6
    print(f"{len(library.files):,} source files, {library.line_count:,} lines, {megabytes:.1f} MB")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    bootstrap = f"127.0.0.1:{port}"
    with running_broker(directory, port) as broker:
        print(f"broker at {bootstrap}, up after {broker.start_s:.2f} s")
        produce_s = produce(bootstrap, library)
        print(f"produced {library.line_count / produce_s:,.0f} records/s, {megabytes / produce_s:.1f} MB/s")
        trim_s = wait_until_trimmed(directory)
        print(f"WAL trimmed to offset {wal_header(directory).trim_offset:,} after {trim_s:.1f} s: all is in objects")
    header = wal_header(directory)
    print(f"stopped; the WAL holds {header.confirmed_offset - header.trim_offset} bytes that are not in objects")
    puts = sum(broker.calls[name] for name in PUT_NAMES)
    print(
        f"{broker.object_count} objects of {broker.object_bytes / 1e6:.1f} MB hold it (lz4); "
        f"{puts} PUTs in all, metadata and compaction included"
    )
    with running_broker(directory, port) as restarted:
        print(f"broker restarted with empty caches, up after {restarted.start_s:.2f} s")
        found, consume_s = consume(bootstrap, library)
        group = consume_as_group(bootstrap, library, directory)
    print(
        f"consumed {library.line_count / consume_s:,.0f} records/s, {megabytes / consume_s:.1f} MB/s, "
        f"with {restarted.calls['get_range'] + restarted.calls['get_tail']} ranged GETs"
    )
    sent_sha256, found_sha256 = library.sha256(), found.sha256()
    print(f"sha256 sent  {sent_sha256}\nsha256 found {found_sha256}")
    if sent_sha256 != found_sha256:
        raise DemoFailed("the content that came back differs from what was sent")
    print("Every line of every file came back, in order, from objects.")
    check_group(group, library)
    print(
        f"a group of two read everything in {group.seconds:.1f} s; one was killed after {group.before_kill:,} lines, the other took "
        f"its partitions over after {group.takeover_s:.1f} s (session timeout {SESSION_TIMEOUT_MS / 1000:.0f} s)"
    )
    print(f"No line is missing; {group.repeated:,} that were read but not committed were read twice.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="keep the broker's data here instead of removing it")
    parser.add_argument("--member", nargs=2, metavar=("BOOTSTRAP", "JOURNAL"), help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        uvloop.run(serve(options.serve))
        return 0
    if options.member is not None:
        bootstrap, journal = options.member
        member(bootstrap, Path(journal))
        return 0
    directory = options.directory
    target = directory or Path(tempfile.mkdtemp(prefix="tidelog-demo-"))
    target.mkdir(parents=True, exist_ok=True)
    try:
        run(target.resolve())
    except DemoFailed as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    finally:
        if directory is None:
            shutil.rmtree(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
