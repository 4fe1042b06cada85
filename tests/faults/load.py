"""Producers and consumers in three languages that go on whatever happens, what they were promised, and what came of it.

Each is a process of its own, `LOAD BOOTSTRAP TOPIC PARTITIONS NAME RECORDS_PER_SECOND`: librdkafka (`confluent_load.py`, twice: with its default settings,
and as an idempotent producer), Kafka's Java client (`tests/interop/java`, Load) and franz-go (`tests/interop/go/cmd/load`), all else with default
settings. Record `number` of producer NAME goes to partition `number % PARTITIONS`; its key is `NAME/number`, its value that and a semicolon,
`number % 40 + 1` times. The group NAME reads the topic from its beginning. Each prints lines as things happen:

    s PARTITION NUMBER             a record was given to the producer
    a PARTITION NUMBER OFFSET      it was acknowledged
    r PARTITION OFFSET KEY DIGEST  a record was read; CRC-32C of key and value
    e TEXT                         an error surfaced
    w TEXT                         what it waits for, after the end of its input (librdkafka's do)
    end                            the last line, after the end of its input

Always true: what the lines say goes to one `History`, which `tests.checker` holds the final logs against.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition
from crc32c import crc32c

from tests.checker.history import Found, History
from tests.interop.clients.driver import BUILT, FranzGo, Java, java_command

__all__ = ["Load", "Watermarks", "all_loads", "loading"]

_END_WITHIN_S = 150.0
"""Of a load whose input has ended: producers' own patience is two minutes and more."""

_LOG_LINES = 60
"""Of what a client's library said, where the client does not come to its end."""


class Load:
    """One process."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        history: History,
        *,
        topic: str,
        idempotent: bool,
        log_path: Path,
    ) -> None:
        """Take the parts. `log_path` is where its library's own log goes."""
        self.name = name
        self.log_path = log_path
        self.errors: list[str] = []
        self.acknowledged = 0
        self.read = 0
        self.longest_gap_s = 0.0
        """Between two acknowledgements of one partition."""
        self._command = command
        self._topic = topic
        self._history = history
        self._ended = False
        self._waits_for = ""
        self._last_s: dict[int, float] = {}
        self._unanswered: dict[int, int] = {}
        """The partition of each record that was sent, by its number."""
        if idempotent:
            history.idempotent(name)

    def start(self) -> None:
        """Begin to send and to read."""
        with self.log_path.open("w") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._thread = threading.Thread(target=self._listen, name=self.name)
        self._thread.start()

    def goes_on_since(self, moment_s: float) -> bool:
        """Whether every partition has acknowledged something since a moment (`time.monotonic`)."""
        return all(at_s > moment_s for at_s in self._last_s.values())

    def stop_sending(self) -> None:
        """No more records; those under way are waited for, see `wait`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self) -> None:
        """Return when all was acknowledged, or refused."""
        self._thread.join(_END_WITHIN_S)
        if not self._ended:
            where = sorted(set(self._unanswered.values()))
            self.errors.append(
                f"it did not come to its end within {_END_WITHIN_S} s of the last record (it waits for {self._waits_for or 'something'}); "
                f"{len(self._unanswered)} records have no answer, of partitions {where}\n{self._log_tail()}"
            )
        self.kill()

    def kill(self) -> None:
        """Leave nothing behind."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _log_tail(self) -> str:
        """What its library said last; the whole of it is in the file."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-_LOG_LINES:])

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            kind, _, rest = line.rstrip("\n").partition(" ")
            match kind:
                case "s":
                    partition, number = rest.split()
                    key = f"{self.name}/{number}".encode()
                    self._unanswered[int(number)] = int(partition)
                    digest = crc32c((key + b";") * (int(number) % 40 + 1), crc32c(key))
                    self._history.sent(f"{self._topic}-{partition}", self.name, int(number), digest)
                case "a":
                    partition, number, offset = rest.split()
                    self._history.acknowledged(f"{self._topic}-{partition}", self.name, int(number), int(offset))
                    self._acknowledged(int(partition))
                    self._unanswered.pop(int(number), None)
                case "r":
                    partition, offset, key_text, digest_text = rest.split()
                    producer, _, number = key_text.rpartition("/")
                    found = Found(int(offset), producer, int(number), int(digest_text))
                    self._history.seen(f"{self._topic}-{partition}", [found])
                    self.read += 1
                case "e":
                    self.errors.append(rest)
                case "w":
                    self._waits_for = rest
                case "end":
                    self._ended = True
                case _:
                    self.errors.append(f"it said {line!r}")

    def _acknowledged(self, partition: int) -> None:
        now_s = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now_s - self._last_s.get(partition, now_s))
        self._last_s[partition] = now_s
        self.acknowledged += 1


class Watermarks:
    """Asks for the high watermark of each partition again and again: it never goes back (I3)."""

    def __init__(self, bootstrap_servers: str, topic: str, partitions: int) -> None:
        self.problems: list[str] = []
        self.asked = 0
        self._highest = dict.fromkeys(range(partitions), 0)
        self._topic = topic
        self._consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "watermarks", "log_level": 0})
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watermarks")

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()
        self._thread.join()
        self._consumer.close()

    def _run(self) -> None:
        while not self._stopping.wait(0.05):
            for partition, highest in self._highest.items():
                try:
                    _, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=1.0)
                except KafkaException:
                    continue  # nobody answers just now
                self.asked += 1
                if high < highest:
                    self.problems.append(f"{self._topic}-{partition}: the high watermark was {highest}, then {high}")
                self._highest[partition] = max(high, highest)


def all_loads(
    bootstrap_servers: str, topic: str, partitions: int, history: History, *, per_s: int, log_directory: Path
) -> list[Load]:
    """One of each kind; their logs go to `log_directory`. Raises ClientUnavailable where one is not built."""
    Java("").check()
    FranzGo("").check()
    python = [sys.executable, "-m", "tests.faults.confluent_load"]
    programs: list[tuple[str, list[str], list[str], bool]] = [
        ("librdkafka", python, [], False),
        ("librdkafka-idempotent", python, ["enable.idempotence=true"], True),
        ("java", [*java_command(), "tidelog.Load"], [], True),
        ("franz-go", [str(BUILT / "go" / "load")], [], True),
    ]
    return [
        Load(
            name,
            [*program, bootstrap_servers, topic, str(partitions), name, str(per_s), *settings],
            history,
            topic=topic,
            idempotent=idempotent,
            log_path=log_directory / f"{name}.log",
        )
        for name, program, settings, idempotent in programs
    ]


@contextlib.contextmanager
def loading(loads: Sequence[Load]) -> Iterator[None]:
    """All of them run within the block; after it all is acknowledged or refused."""
    with contextlib.ExitStack() as stack:
        for load in loads:
            load.start()
            stack.callback(load.kill)
        yield
        for load in loads:
            load.stop_sending()
        for load in loads:
            load.wait()
