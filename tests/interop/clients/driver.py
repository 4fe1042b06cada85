"""Clients in other languages: each is a program that answers calls, one JSON line in, one JSON line out (`../README.md`).

Always true:
- One process of each kind serves all tests of a run; it holds no connection between calls, but for its group members.
- A client's error comes back as `ClientError`, with the client's own text; a driver that dies or says nothing fails the
  test that called it, and the next call starts a new one.
"""

from __future__ import annotations

import atexit
import base64
import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.interop.clients.base import DEADLINE_S, ClientUnavailable, Member, Progress, Record

__all__ = ["BUILT", "ClientError", "Driver", "FranzGo", "Java", "KafkaJs", "Platformatic", "Sarama"]

BUILT = Path(__file__).resolve().parents[3] / "build" / "clients"
"""Where `make clients` puts what it builds."""

_ANSWER_TIMEOUT_S = 2 * DEADLINE_S


class ClientError(Exception):
    """What a client in another language raised."""


class _Process:
    """One running driver."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._answers: queue.Queue[bytes] = queue.Queue()
        self._calling = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, request: Mapping[str, Any]) -> Any:
        with self._calling:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            try:
                line = self._answers.get(timeout=_ANSWER_TIMEOUT_S)
            except queue.Empty:
                self.close()
                raise TimeoutError(f"no answer to {request['call']} within {_ANSWER_TIMEOUT_S} s") from None
            if not line:
                raise RuntimeError(f"the driver ended during {request['call']}: its output tells why")
            answer = json.loads(line)
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer.get("result")

    def close(self) -> None:
        atexit.unregister(self.close)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._answers.put(line)
        except ValueError:
            pass  # closed under us: the test run ends
        self._answers.put(b"")


class Driver:
    """A client that lives in another process. Subclasses say how it is started and what it cannot do."""

    name: str
    tools: ClassVar[tuple[str, ...]]
    """Programs that it needs, to run or to be built."""
    directory: ClassVar[str]
    """Its folder below `BUILT`."""
    assignors: tuple[str, ...]
    codecs: tuple[str, ...] = ("none", "gzip", "snappy", "lz4", "zstd")
    cannot_read: tuple[str, ...] = ()
    keeps_timestamps = True
    static_membership = True

    _process: ClassVar[_Process | None] = None

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def command(self) -> list[str]:
        """What starts it."""
        raise NotImplementedError

    def check(self) -> None:
        missing = [tool for tool in self.tools if shutil.which(tool) is None]
        if missing:
            raise ClientUnavailable(f"{self.name} needs {' and '.join(missing)}: sudo make system-packages")
        built = BUILT / self.directory
        if not (built / ".built").exists():
            log = built / "build.log"
            why = f"could not be built: {log} tells why" if log.exists() else "is not built: make clients"
            raise ClientUnavailable(f"{self.name} {why}")

    @property
    def version(self) -> str:
        return str(self._call("version"))

    def produce(
        self,
        topic: str,
        records: Sequence[Record],
        *,
        compression: str = "none",
        partition: int = 0,
        acks: int = -1,
        idempotent: bool = False,
        pause_ms: int = 0,
    ) -> None:
        self._call(
            "produce",
            topic=topic,
            partition=partition,
            compression=compression,
            acks=acks,
            idempotent=idempotent,
            pause_ms=pause_ms,
            records=[_to_json(record) for record in records],
        )

    def consume(self, topic: str, *, offset: int = 0, count: int, partition: int = 0) -> list[Record]:
        return [
            _from_json(found)
            for found in self._call("consume", topic=topic, partition=partition, offset=offset, count=count)
        ]

    def offset_for_timestamp(self, topic: str, timestamp_ms: int, partition: int = 0) -> int | None:
        found = self._call("offset_for_timestamp", topic=topic, partition=partition, timestamp_ms=timestamp_ms)
        return None if found is None else int(found)

    def create_topic(self, topic: str, partitions: int, configs: dict[str, str] | None = None) -> None:
        self._call("create_topic", topic=topic, partitions=partitions, configs=configs or {})

    def delete_topic(self, topic: str) -> None:
        self._call("delete_topic", topic=topic)

    def partitions(self, topic: str) -> set[int] | None:
        found = self._call("partitions", topic=topic)
        return None if found is None else set(found)

    def join(self, topic: str, group: str, *, assignor: str, instance_id: str = "", limit: int = 0) -> Member:
        handle = self._call("join", topic=topic, group=group, assignor=assignor, instance_id=instance_id, limit=limit)
        return _Member(self, handle)

    def committed(self, topic: str, group: str) -> dict[int, int]:
        found = self._call("committed", topic=topic, group=group)
        return {int(partition): offset for partition, offset in found.items() if offset >= 0}

    def call(self, call: str, **arguments: Any) -> Any:
        """One call that only this client knows."""
        return self._call(call, **arguments)

    def _call(self, call: str, **arguments: Any) -> Any:
        kind = type(self)
        if kind._process is None or not kind._process.alive:
            kind._process = _Process(self.command())
        return kind._process.call({"call": call, "bootstrap": self.bootstrap, **arguments})


class _Member:
    def __init__(self, driver: Driver, handle: int) -> None:
        self._driver = driver
        self._handle = handle

    def progress(self) -> Progress:
        found = self._driver.call("progress", member=self._handle)
        if found["failure"]:
            raise ClientError(found["failure"])
        return Progress(
            assigned=frozenset(found["assigned"]),
            records=tuple((record["partition"], _from_json(record)) for record in found["records"] or ()),
        )

    def leave(self) -> None:
        self._driver.call("leave", member=self._handle)


class Java(Driver):
    """Kafka's own clients."""

    name = "kafka-clients (Java)"
    tools = ("java", "mvn")
    directory = "java"
    assignors = ("range", "roundrobin", "sticky", "cooperative-sticky")

    def command(self) -> list[str]:
        return [*java_command(), "tidelog.Driver"]


def java_command() -> list[str]:
    """`java` with everything of Kafka's in its class path, as light as one run needs it."""
    return ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m", "-cp", f"{BUILT}/java/lib/*"]


class FranzGo(Driver):
    name = "franz-go"
    tools = ("go",)
    directory = "go"
    assignors = ("range", "roundrobin", "sticky", "cooperative-sticky")

    def command(self) -> list[str]:
        return [str(BUILT / "go" / "franz-go")]


class Sarama(Driver):
    name = "sarama"
    tools = ("go",)
    directory = "go"
    assignors = ("range", "roundrobin", "sticky")

    def command(self) -> list[str]:
        return [str(BUILT / "go" / "sarama")]


class KafkaJs(Driver):
    name = "kafkajs"
    tools = ("node", "npm")
    directory = "javascript"
    assignors = ("RoundRobinAssigner",)
    static_membership = False  # it knows no group.instance.id

    def command(self) -> list[str]:
        return ["node", str(BUILT / "javascript" / "kafkajs.mjs")]


class Platformatic(Driver):
    name = "@platformatic/kafka"
    tools = ("node", "npm")
    directory = "javascript"
    assignors = ("roundrobin",)
    cannot_read = (
        "snappy",
    )  # it knows only bare Snappy, not the framing that most others, Kafka's own first, put around it

    @property
    def codecs(self) -> tuple[str, ...]:
        return tuple(self._call("codecs"))  # zstd comes with Node.js 22.15

    def command(self) -> list[str]:
        return ["node", str(BUILT / "javascript" / "platformatic.mjs")]


def _to_json(record: Record) -> dict[str, Any]:
    return {
        "key": _base64(record.key),
        "value": _base64(record.value),
        "headers": [{"name": name, "value": _base64(value)} for name, value in record.headers],
        "timestamp_ms": record.timestamp_ms,
    }


def _from_json(found: Mapping[str, Any]) -> Record:
    return Record(
        key=_bytes(found["key"]),
        value=_bytes(found["value"]),
        headers=tuple(_headers(found["headers"] or ())),
        timestamp_ms=found["timestamp_ms"],
        offset=found["offset"],
    )


def _headers(found: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, bytes]]:
    for header in found:
        yield header["name"], base64.b64decode(header["value"])


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
