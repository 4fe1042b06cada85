"""kcat, the command line client, as Debian packages it (an older librdkafka than confluent-kafka's)."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

from tests.interop.clients.base import CODECS, DEADLINE_S, ClientUnavailable, Member, Progress, Record

_KEY_SEPARATOR = "|"
_RECORD_SEPARATOR = "~"


class Kcat:
    name = "kcat"
    keeps_timestamps = False
    codecs = CODECS
    cannot_read = ()
    assignors = ("range", "roundrobin")  # its rebalance callback knows no incremental assignment
    static_membership = True

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def check(self) -> None:
        if shutil.which("kcat") is None:
            raise ClientUnavailable("kcat is not installed: apt-get install kcat")

    @property
    def version(self) -> str:
        done = subprocess.run(["kcat", "-V"], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
        found = re.search(r"Version ([\d.]+) .*librdkafka ([\d.]+\d)", done.stdout)
        assert found is not None, f"kcat tells no version: {done.stdout}"
        return f"{found[1]} (librdkafka {found[2]})"

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
        # kcat gives the same headers to everything it sends: one run for each change of headers.
        settings = ["-X", f"acks={acks}", "-X", f"enable.idempotence={str(idempotent).lower()}"]
        begin = 0
        for end in range(1, len(records) + 1):
            if end == len(records) or records[end].headers != records[begin].headers:
                self._produce(topic, records[begin:end], compression, partition, settings, pause_ms)
                begin = end

    def _produce(
        self,
        topic: str,
        records: Sequence[Record],
        compression: str,
        partition: int,
        settings: Sequence[str],
        pause_ms: int,
    ) -> None:
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
            *settings,
            "-E",  # go on while no broker can be reached
            "-Z",  # an empty key or value is sent as null
            "-K",
            _KEY_SEPARATOR,
            "-D",
            _RECORD_SEPARATOR,
            *headers,
            stdin=[line + _RECORD_SEPARATOR for line in lines[:-1]] + lines[-1:],
            pause_ms=pause_ms,
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

    def join(self, topic: str, group: str, *, assignor: str, instance_id: str = "", limit: int = 0) -> Member:
        settings = {
            "auto.offset.reset": "earliest",
            "partition.assignment.strategy": assignor,
            "heartbeat.interval.ms": "300",
            "session.timeout.ms": "6000",
            "auto.commit.interval.ms": "50",
            **({"group.instance.id": instance_id} if instance_id else {}),
        }
        count = ["-c", str(limit)] if limit else []
        options = [f"-X{name}={value}" for name, value in settings.items()]
        return _Member(["kcat", "-b", self.bootstrap, "-G", group, *count, "-u", "-J", *options, topic])

    def committed(self, topic: str, group: str) -> dict[int, int]:
        raise NotImplementedError("kcat does not administer groups")

    def run(self, *arguments: str, stdin: Sequence[str] = (), pause_ms: int = 0) -> str:
        process = subprocess.Popen(
            ["kcat", "-b", self.bootstrap, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert process.stdin is not None
            if pause_ms:
                for text in stdin:
                    process.stdin.write(text.encode())
                    process.stdin.flush()
                    time.sleep(pause_ms / 1000)
                output, errors = process.communicate(timeout=DEADLINE_S)
            else:
                output, errors = process.communicate("".join(stdin).encode(), timeout=DEADLINE_S)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            raise RuntimeError(f"kcat {' '.join(arguments)} failed: {errors.decode(errors='replace')}")
        return output.decode()


class _Member:
    """A kcat that reads as a member of a group. It commits by itself, several times a second and at its end."""

    def __init__(self, command: Sequence[str]) -> None:
        self._assigned: frozenset[int] = frozenset()
        self._records: list[tuple[int, Record]] = []
        self._notes: list[str] = []
        self._lock = threading.Lock()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._read_output, self._read_notes)]
        for thread in self._threads:
            thread.start()

    def progress(self) -> Progress:
        with self._lock:
            if self._process.poll() not in (None, 0):
                raise RuntimeError(f"kcat failed: {self._notes}")
            records, self._records = self._records, []
            return Progress(assigned=self._assigned, records=tuple(records))

    def leave(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        if self._process.wait(DEADLINE_S) != 0:
            raise RuntimeError(f"kcat failed: {self._notes}")
        for thread in self._threads:
            thread.join()

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                found = json.loads(line)
                with self._lock:
                    self._records.append((int(found["partition"]), _record(found)))

    def _read_notes(self) -> None:
        # "% Group g rebalanced (memberid m): assigned: topic [0], topic [1]"; "revoked:" takes all (or, cooperatively, some) away
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                partitions = frozenset(map(int, re.findall(r"\[(\d+)\]", line)))
                with self._lock:
                    self._notes.append(line.strip())
                    if "rebalanced" not in line:
                        continue
                    if ": assigned:" in line:
                        self._assigned |= partitions
                    elif ": revoked:" in line:
                        self._assigned -= partitions


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
