"""An object store in memory, for tests and simulation, as strong as S3 where S3 is strong and as nasty where it is not.

`Bucket` is the far end: it outlives clients. `MemoryObjectStore` is one process's client of it.

Fault model (each drawn from the client's `rng`, so that one seed gives one history):
- Every request takes time on its way there and back; now and then a lot. Requests overtake each other.
- REFUSED: throttled or reset before anything happened; the caller sees `Unavailable`.
- LOST_REPLY: the request took effect and its reply was lost; the caller sees `Unavailable`.
- DELAYED: the caller sees `Unavailable`, and the request takes effect later, conditions being checked then.
- ECHO: a write or deletion took effect and was answered, and takes effect once more later, conditions being checked then.
- REPEATED: the client tried a conditional write again after a lost reply, so that it fails on its own first attempt.
- CONFLICT: a conditional write is refused with `WriteConflict`; nothing was written.
- FLIPPED: one bit of a range read differs (what is stored does not). Only CRCs notice.
- `outage`: until it is switched off, requests fail without effect.
- `die`: the process is gone. Requests on their way take effect or not; nothing returns to its callers any more.
Never: torn objects, a read that misses a finished write, lists out of order, silent loss. S3 does none of these either.

Why DELAYED and ECHO are permitted. A client that times out, its SDK that tries again, and any proxy on the way leave copies of a request
behind which nobody can call back: S3 takes them for as long as their signature is good (15 minutes), in any order. So a PUT may
land after the one that its caller was answered for, after later PUTs to that key, and after the key was deleted: an unconditional
one, and one that wants the key absent, then makes the object again. One that wants an entity tag lands only on exactly the bytes that it was
meant to replace. A part of an upload that was completed or aborted lands nowhere, so a whole multipart upload has no echo.

No clock, thread or socket: time passes by `asyncio.sleep` only, so it runs on a virtual-time loop.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import random
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from s3stream.objectstore import (
    Buffer,
    CopyUnconfirmed,
    MultipartSummary,
    NotFound,
    ObjectStoreError,
    ObjectSummary,
    PreconditionFailed,
    StoredObject,
    StoredRange,
    Unavailable,
    WriteConflict,
    WrittenObject,
    scatter,
)
from wal.checksum import crc32c

__all__ = ["Bucket", "DeadClient", "Fault", "Faults", "MemoryObjectStore"]

_T = TypeVar("_T")

_LIST_PAGE_SIZE = 1000
"""As S3's."""


class DeadClient(Exception):
    """A call from a process that `die` declared dead. Nothing may catch this but the simulator."""


class Fault(enum.Enum):
    """What can go wrong with one request; see above."""

    REFUSED = "refused"
    LOST_REPLY = "lost_reply"
    DELAYED = "delayed"
    ECHO = "echo"
    REPEATED = "repeated"
    CONFLICT = "conflict"
    FLIPPED = "flipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Probabilities per request, and times. By default nothing goes wrong and nothing takes time."""

    latency_ms: float = 0.0
    """Mean of one request, there and back; drawn from an exponential distribution."""
    slow_probability: float = 0.0
    slow_latency_ms: float = 1_000.0
    """Mean of those that are slow."""
    delay_ms: float = 5_000.0
    """Latest that a DELAYED request takes effect, or an ECHO does."""
    refused: float = 0.0
    lost_reply: float = 0.0
    delayed: float = 0.0
    echo: float = 0.0
    repeated: float = 0.0
    conflict: float = 0.0
    flipped: float = 0.0


@dataclass(slots=True)
class _Stored:
    data: bytes
    etag: str
    modified_ms: int


@dataclass(slots=True)
class _Multipart:
    key: str
    begun_ms: int


@dataclass(slots=True)
class Bucket:
    """What is stored. Every method is atomic."""

    objects: dict[str, _Stored] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    """Sorted as S3 lists them (all keys are ASCII)."""
    multiparts: dict[int, _Multipart] = field(default_factory=dict)
    writes: int = 0
    """Objects written or replaced so far."""

    def write(self, key: str, data: bytes, now_ms: int, *, absent: bool = False, etag: str | None = None) -> str:
        """Write if the condition holds; returns the new entity tag."""
        current = self.objects.get(key)
        if absent and current is not None:
            raise PreconditionFailed(f"{key} exists")
        if etag is not None and (current is None or current.etag != etag):
            raise PreconditionFailed(f"{key} does not have entity tag {etag}")
        if current is None:
            insort(self.keys, key)
        self.writes += 1
        new = _Stored(data, hashlib.blake2b(data, digest_size=16).hexdigest(), now_ms)
        self.objects[key] = new
        return new.etag

    def read(self, key: str) -> _Stored:
        """What the key holds."""
        try:
            return self.objects[key]
        except KeyError:
            raise NotFound(key) from None

    def delete(self, keys: Iterable[str]) -> None:
        """Delete what exists of these."""
        for key in keys:
            if self.objects.pop(key, None) is not None:
                del self.keys[bisect_left(self.keys, key)]

    def flip_bit(self, key: str, bit: int) -> None:
        """Damage a stored object for good, as no store should."""
        data = bytearray(self.objects[key].data)
        data[bit >> 3] ^= 1 << (bit & 7)
        self.objects[key].data = bytes(data)


class MemoryObjectStore:
    """An `ObjectStore` on a `Bucket`."""

    def __init__(
        self,
        bucket: Bucket | None = None,
        *,
        rng: random.Random | None = None,
        faults: Faults | None = None,
        now_ms: Callable[[], int] | None = None,
        uri: str = "mem://",
    ) -> None:
        """Open a client.

        Args:
            rng: where faults and latencies come from; needed only where `faults` has any.
            now_ms: the store's clock; the event loop's by default.
        """
        self.bucket = Bucket() if bucket is None else bucket
        self.faults = Faults() if faults is None else faults
        """May be replaced at any time."""
        self.outage = False
        """While true, every request fails without effect."""
        self.hook: Callable[[str, str], Awaitable[Fault | None]] | None = None
        """Called (operation, key) before each request: may wait, raise, or say what is to go wrong with it."""
        self.requests: Counter[str] = Counter()
        """Requests by operation."""
        self.bytes_written = 0
        self.bytes_read = 0
        self._rng = random.Random(0) if rng is None else rng
        self._now_ms = now_ms
        self._uri = uri
        self._dead = False

    @property
    def uri(self) -> str:
        """What the operator configured."""
        return self._uri

    def die(self) -> None:
        """The process is killed: from here on no call returns a result."""
        self._dead = True

    async def put(self, key: str, parts: Sequence[Buffer], *, crc32c: int | None = None) -> str:
        """See ObjectStore."""
        return await self._write("put", key, b"".join(parts))

    async def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> str:
        """See ObjectStore."""
        return await self._write("put_if_absent", key, b"".join(parts), absent=True)

    async def put_if_match(self, key: str, parts: Sequence[Buffer], etag: str) -> str:
        """See ObjectStore."""
        return await self._write("put_if_match", key, b"".join(parts), etag=etag)

    async def get(self, key: str) -> StoredObject:
        """See ObjectStore."""
        stored = await self._request("get", key, lambda: self.bucket.read(key))
        self.bytes_read += len(stored.data)
        return StoredObject(data=stored.data, etag=stored.etag)

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """See ObjectStore."""
        if not 0 <= start <= end:
            raise ValueError(f"no byte range: {start} to {end}")
        data = await self._request("get_range", key, lambda: self.bucket.read(key).data[start:end], flips=True)
        self.bytes_read += len(data)
        return data

    async def get_range_into(self, key: str, start: int, parts: Sequence[memoryview]) -> int:
        """See ObjectStore."""
        return scatter(await self.get_range(key, start, start + sum(map(len, parts))), parts)

    async def get_stream(self, key: str, start: int, end: int, *, buffer_bytes: int) -> AsyncGenerator[Buffer, None]:
        """See ObjectStore. Each piece after the first may fail by itself."""
        if not 0 <= start <= end:
            raise ValueError(f"no byte range: {start} to {end}")
        data = await self._request("get_stream", key, lambda: self.bucket.read(key).data[start:end], flips=True)
        for begin in range(0, len(data), buffer_bytes):
            if begin:
                await self._request("stream_piece", key, lambda: None)
            piece = data[begin : begin + buffer_bytes]
            self.bytes_read += len(piece)
            yield piece

    async def get_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See ObjectStore."""
        if size <= 0:
            raise ValueError(f"no size for a tail: {size}")
        whole_size = 0

        def read() -> bytes:
            nonlocal whole_size
            whole = self.bucket.read(key).data
            whole_size = len(whole)
            return whole[-size:]

        data = await self._request("get_tail", key, read, flips=True)
        self.bytes_read += len(data)
        return data, whole_size

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectSummary]:
        """See ObjectStore."""

        def page(after: str) -> list[ObjectSummary]:
            keys = self.bucket.keys
            begin = bisect_right(keys, after) if after >= prefix else bisect_left(keys, prefix)
            found = [key for key in keys[begin : begin + _LIST_PAGE_SIZE] if key.startswith(prefix)]
            return [
                ObjectSummary(key=key, size_bytes=len(stored.data), last_modified_ms=stored.modified_ms)
                for key, stored in ((key, self.bucket.objects[key]) for key in found)
            ]

        while True:
            summaries = await self._request("list", prefix, lambda after=start_after: page(after))  # type: ignore[misc]
            for summary in summaries:
                yield summary
            if len(summaries) < _LIST_PAGE_SIZE:
                return
            start_after = summaries[-1].key

    async def delete_many(self, keys: Sequence[str]) -> None:
        """See ObjectStore."""
        sent = tuple(keys)  # what the caller's list holds by the time that it takes effect is another matter
        await self._request("delete_many", sent[0] if sent else "", lambda: self.bucket.delete(sent), delays=True)

    async def put_multipart(self, key: str, parts: AsyncIterator[Buffer]) -> WrittenObject:
        """See ObjectStore."""
        upload_id = 1 + max(self.bucket.multiparts, default=0)
        begun = _Multipart(key, await self.now_ms())
        await self._request("create_multipart", key, lambda: self.bucket.multiparts.update({upload_id: begun}))
        chunks: list[bytes] = []
        try:
            async for part in parts:
                chunks.append(bytes(part))
                await self._request("upload_part", key, lambda: None)

            def complete() -> str:
                # Completing again after a lost reply gives the object that is there, as S3 does.
                self.bucket.multiparts.pop(upload_id, None)
                return self.bucket.write(key, b"".join(chunks), self._store_time_ms())

            self.bytes_written += sum(map(len, chunks))
            etag = await self._request("complete_multipart", key, complete, delays=True, echoes=False)
            return WrittenObject(etag=etag, is_confirmed=False)
        except DeadClient:
            raise  # leaves its upload behind
        except BaseException:
            self.bucket.multiparts.pop(upload_id, None)
            raise

    async def put_composed(self, key: str, parts: AsyncIterator[Buffer | StoredRange]) -> WrittenObject:
        """See ObjectStore."""

        async def bytes_of() -> AsyncIterator[Buffer]:
            async for part in parts:
                yield await self._copied(part) if isinstance(part, StoredRange) else part

        return await self.put_multipart(key, bytes_of())

    async def _copied(self, wanted: StoredRange) -> bytes:
        def read() -> bytes:
            return self.bucket.read(wanted.key).data[wanted.start : wanted.end]

        data = await self._request("copy_part", wanted.key, read)
        _check_copy(wanted, data)
        self.bytes_written -= len(data)  # they do not come by here
        return data

    async def list_multiparts(self, prefix: str) -> AsyncIterator[MultipartSummary]:
        """See ObjectStore."""

        def uploads() -> list[MultipartSummary]:
            return [
                MultipartSummary(key=upload.key, begun_ms=upload.begun_ms)
                for upload in self.bucket.multiparts.values()
                if upload.key.startswith(prefix)
            ]

        for summary in await self._request("list_multiparts", prefix, uploads):
            yield summary

    async def abort_stale_multiparts(self, prefix: str, older_than_ms: int) -> int:
        """See ObjectStore."""

        def abort() -> int:
            uploads = self.bucket.multiparts
            stale = [
                upload_id
                for upload_id, upload in uploads.items()
                if upload.key.startswith(prefix) and upload.begun_ms < older_than_ms
            ]
            for upload_id in stale:
                del uploads[upload_id]
            return len(stale)

        return await self._request("abort_multiparts", prefix, abort)

    async def now_ms(self) -> int:
        """See ObjectStore."""
        return await self._request("now", "", self._store_time_ms)

    async def close(self) -> None:
        """See ObjectStore. Requests that are delayed are no longer ours and still take effect."""

    def _store_time_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000) if self._now_ms is None else self._now_ms()

    async def _write(
        self, operation: str, key: str, data: bytes, *, absent: bool = False, etag: str | None = None
    ) -> str:
        def write() -> str:
            return self.bucket.write(key, data, self._store_time_ms(), absent=absent, etag=etag)

        self.bytes_written += len(data)
        return await self._request(operation, key, write, delays=True, conditional=absent or etag is not None)

    async def _request(
        self,
        operation: str,
        key: str,
        effect: Callable[[], _T],
        *,
        delays: bool = False,
        echoes: bool = True,
        conditional: bool = False,
        flips: bool = False,
    ) -> _T:
        """One request: travel, take effect, travel back, with whatever goes wrong."""
        self._check_alive(operation)
        self.requests[operation] += 1
        fault = await self.hook(operation, key) if self.hook is not None else None
        fault = fault or self._draw_fault(delays=delays, echoes=delays and echoes, conditional=conditional, flips=flips)
        await self._travel()
        if self._dead:
            if self._rng.random() < 0.5:
                _ignore_refusal(effect)
            raise DeadClient(operation)
        if self.outage or fault is Fault.REFUSED:
            raise Unavailable(f"{operation} {key}: refused")
        if fault is Fault.CONFLICT:
            raise WriteConflict(f"{operation} {key}: another conditional write is under way")
        if fault is Fault.DELAYED:
            self._later(effect)
            raise Unavailable(f"{operation} {key}: timed out")
        result = effect()
        if fault is Fault.ECHO:
            self._later(effect)
        if fault is Fault.REPEATED:
            await self._travel()
            result = effect()
        await self._travel()
        self._check_alive(operation)
        if fault is Fault.LOST_REPLY:
            raise Unavailable(f"{operation} {key}: connection reset")
        if fault is Fault.FLIPPED and isinstance(result, bytes) and result:
            flipped = bytearray(result)
            flipped[self._rng.randrange(len(flipped))] ^= 1 << self._rng.randrange(8)
            return bytes(flipped)  # type: ignore[return-value]
        return result

    def _later(self, effect: Callable[[], object]) -> None:
        delay_s = self._rng.random() * self.faults.delay_ms / 1000
        asyncio.get_running_loop().call_later(delay_s, _ignore_refusal, effect)

    def _check_alive(self, operation: str) -> None:
        if self._dead:
            raise DeadClient(operation)

    def _draw_fault(self, *, delays: bool, echoes: bool, conditional: bool, flips: bool) -> Fault | None:
        faults = self.faults
        for fault, probability in (
            (Fault.REFUSED, faults.refused),
            (Fault.LOST_REPLY, faults.lost_reply),
            (Fault.DELAYED, faults.delayed if delays else 0.0),
            (Fault.ECHO, faults.echo if echoes else 0.0),
            (Fault.REPEATED, faults.repeated if conditional else 0.0),
            (Fault.CONFLICT, faults.conflict if conditional else 0.0),
            (Fault.FLIPPED, faults.flipped if flips else 0.0),
        ):
            if probability and self._rng.random() < probability:
                return fault
        return None

    async def _travel(self) -> None:
        faults = self.faults
        mean_ms = faults.latency_ms
        if faults.slow_probability and self._rng.random() < faults.slow_probability:
            mean_ms = faults.slow_latency_ms
        await asyncio.sleep(self._rng.expovariate(2 / mean_ms) / 1000 if mean_ms else 0)


def _check_copy(wanted: StoredRange, data: bytes) -> None:
    if len(data) != len(wanted):
        raise ObjectStoreError(f"{wanted.key} has no bytes {wanted.start} to {wanted.end}")
    if wanted.crc32c is not None and crc32c(data) != wanted.crc32c:
        raise CopyUnconfirmed(
            f"bytes {wanted.start} to {wanted.end} of {wanted.key} do not have the CRC that they should"
        )


def _ignore_refusal(effect: Callable[[], object]) -> None:
    """Let a request take effect that nobody waits for: its conditions may no longer hold."""
    try:
        effect()
    except (PreconditionFailed, NotFound):
        return
