"""kcat, the command line client, as Debian packages it (an older librdkafka than confluent-kafka's)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence

from tests.interop.clients.base import DEADLINE_S, ClientUnavailable, Record

_KEY_SEPARATOR = "|"
_RECORD_SEPARATOR = "~"


class Kcat:
    name = "kcat"
    keeps_timestamps = False

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def check(self) -> None:
        if shutil.which("kcat") is None:
            raise ClientUnavailable("kcat is not installed: apt-get install kcat")

    def produce(
        self, topic: str, records: Sequence[Record], *, compression: str = "none", partition: int = 0, acks: int = -1
    ) -> None:
        # kcat gives the same headers to everything it sends: one run for each change of headers.
        begin = 0
        for end in range(1, len(records) + 1):
            if end == len(records) or records[end].headers != records[begin].headers:
                self._produce(topic, records[begin:end], compression, partition, acks)
                begin = end

    def _produce(self, topic: str, records: Sequence[Record], compression: str, partition: int, acks: int) -> None:
        headers = [f"-H{name}={value.decode()}" for name, value in records[0].headers]
        lines = [
            _KEY_SEPARATOR.join(((record.key or b"").decode(), (record.value or b"").decode())) for record in records
        ]
        self.run(
            "-P",
            "-t",
            topic,
            "-p",
            str(partition),
            "-z",
            compression,
            "-X",
            f"acks={acks}",
            "-Z",  # an empty key or value is sent as null
            "-K",
            _KEY_SEPARATOR,
            "-D",
            _RECORD_SEPARATOR,
            *headers,
            stdin=_RECORD_SEPARATOR.join(lines),
        )

    def consume(self, topic: str, *, offset: int = 0, count: int, partition: int = 0) -> list[Record]:
        out = self.run("-C", "-t", topic, "-p", str(partition), "-o", str(offset), "-c", str(count), "-e", "-J", "-q")
        return [_record(json.loads(line)) for line in out.splitlines()]

    def offset_for_timestamp(self, topic: str, timestamp_ms: int, partition: int = 0) -> int | None:
        out = self.run("-Q", "-t", f"{topic}:{partition}:{timestamp_ms}")
        offset = int(out.rsplit("offset", 1)[1])
        return offset if offset >= 0 else None

    def create_topic(self, topic: str, partitions: int, configs: dict[str, str] | None = None) -> None:
        raise NotImplementedError("kcat does not administer topics")

    def delete_topic(self, topic: str) -> None:
        raise NotImplementedError("kcat does not administer topics")

    def partitions(self, topic: str) -> set[int] | None:
        for found in json.loads(self.run("-L", "-J"))["topics"]:
            if found["topic"] == topic:
                return {partition["partition"] for partition in found["partitions"]}
        return None

    def run(self, *arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            ["kcat", "-b", self.bootstrap, *arguments],
            input=stdin.encode(),
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"kcat {' '.join(arguments)} failed: {done.stderr.decode(errors='replace')}")
        return done.stdout.decode()


def _record(found: dict[str, object]) -> Record:
    headers = found.get("headers") or []
    assert isinstance(headers, list)
    return Record(
        value=_bytes(found["payload"]),
        key=_bytes(found["key"]),
        headers=tuple((name, str(value).encode()) for name, value in zip(headers[::2], headers[1::2], strict=True)),
        timestamp_ms=int(str(found["ts"])),
        offset=int(str(found["offset"])),
    )


def _bytes(text: object) -> bytes | None:
    return None if text is None else str(text).encode()
