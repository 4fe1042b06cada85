"""A group member in a thread, for the clients in Python.

Always true: only the member's own thread touches its consumer; what it has gathered is handed over under a lock.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from tests.interop.clients.base import DEADLINE_S, Progress, Record

__all__ = ["ThreadedMember"]


class ThreadedMember(ABC):
    """Subclasses read, commit and close; `assign`, `revoke`, `keep` and `full` are theirs to call."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._read = 0
        self._assigned: set[int] = set()
        self._records: list[tuple[int, Record]] = []
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @abstractmethod
    def run(self) -> None:
        """Read and commit until `stopping`, then close."""

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def assign(self, partitions: set[int]) -> None:
        with self._lock:
            self._assigned |= partitions

    def revoke(self, partitions: set[int]) -> None:
        with self._lock:
            self._assigned -= partitions

    def keep(self, partition: int, record: Record) -> None:
        with self._lock:
            self._records.append((partition, record))
            self._read += 1

    @property
    def full(self) -> bool:
        return bool(self._limit) and self._read >= self._limit

    def progress(self) -> Progress:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            records, self._records = self._records, []
            return Progress(assigned=frozenset(self._assigned), records=tuple(records))

    def leave(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)
        if self._thread.is_alive():
            raise TimeoutError(f"the member did not leave within {DEADLINE_S} s")
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self.run()
        except BaseException as error:
            self._failure = error
