"""Two small things from which everything that needs agreement in a bucket is made: taking a numbered slot, and
compare-and-swap of a small object. Both resolve what a lost reply leaves open.

Always true:
- The body holds a nonce that nobody else uses and that is used for one body only. So whoever reads the key sees
  whether it is ours, and "it failed because I had succeeded" cannot be mistaken for "somebody was faster".
- `Unavailable` from here means, as everywhere: it may have happened or may still happen. Ask again with the same body.
- A WriteConflict (409) is an invitation to try again, not an answer.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from s3stream.objectstore import (
    NotFound,
    ObjectStore,
    ObjectStoreError,
    PreconditionFailed,
    StoredObject,
    Unavailable,
    WriteConflict,
)

__all__ = ["CasObject", "Outcome", "RetryPolicy", "occupy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long and how often to ask."""

    first_delay_ms: int = 50
    max_delay_ms: int = 2_000
    deadline_ms: int = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a key holds after an attempt."""

    mine: bool
    """The key holds (or held, at one moment of the attempt) what was to be written."""
    data: bytes
    etag: str


async def occupy(
    store: ObjectStore, key: str, body: bytes, nonce: bytes, *, rng: random.Random, retry: RetryPolicy | None = None
) -> Outcome:
    """Take a slot that can be taken once.

    Args:
        body: what to write; contains `nonce`.

    Raises:
        Unavailable: the outcome is open at the deadline.
        NotFound: the slot was taken by somebody and deleted since.
    """
    return await _write(store, key, body, nonce, None, rng, retry or RetryPolicy())


class CasObject:
    """A small object that is replaced only by who has read it."""

    def __init__(self, store: ObjectStore, key: str, *, rng: random.Random, retry: RetryPolicy | None = None) -> None:
        self._store = store
        self._key = key
        self._rng = rng
        self._retry = retry or RetryPolicy()

    async def read(self) -> StoredObject | None:
        """What the object holds, None while there is none. Raises Unavailable."""
        back_off = _BackOff(self._rng, self._retry)
        while True:
            try:
                return await self._store.get(self._key)
            except NotFound:
                return None
            except Unavailable as error:
                await back_off.wait(error)

    async def swap(self, body: bytes, etag: str | None, nonce: bytes) -> Outcome:
        """Replace what had `etag` (None: nothing) by `body`, which contains `nonce`.

        Not `mine` means that somebody else's data is there. If ours was there in between, another one has since
        replaced it, knowingly.

        Raises:
            Unavailable: the outcome is open at the deadline.
            NotFound: somebody deleted the object.
        """
        return await _write(self._store, self._key, body, nonce, etag, self._rng, self._retry)


async def _write(
    store: ObjectStore,
    key: str,
    body: bytes,
    nonce: bytes,
    etag: str | None,
    rng: random.Random,
    retry: RetryPolicy,
) -> Outcome:
    if len(nonce) < 8 or nonce not in body:
        raise ValueError("the body must contain a nonce of eight bytes or more: by it a lost reply is made up for")
    back_off = _BackOff(rng, retry)
    while True:
        try:
            if etag is None:
                new_etag = await store.put_if_absent(key, [body])
            else:
                new_etag = await store.put_if_match(key, [body], etag)
            return Outcome(mine=True, data=body, etag=new_etag)
        except (Unavailable, WriteConflict) as error:
            await back_off.wait(error)
        except PreconditionFailed:
            break
    while True:
        try:
            found = await store.get(key)
        except Unavailable as error:
            await back_off.wait(error)
        else:
            return Outcome(mine=found.data == body, data=found.data, etag=found.etag)


class _BackOff:
    """Exponential, with jitter, until a deadline."""

    def __init__(self, rng: random.Random, retry: RetryPolicy) -> None:
        self._rng = rng
        self._retry = retry
        self._delay_s = retry.first_delay_ms / 1000
        self._deadline = asyncio.get_running_loop().time() + retry.deadline_ms / 1000

    async def wait(self, error: ObjectStoreError) -> None:
        """Wait before the next attempt. Raises Unavailable if the time is up."""
        delay_s = self._delay_s * (0.5 + self._rng.random())
        if asyncio.get_running_loop().time() + delay_s > self._deadline:
            raise Unavailable(f"no answer within {self._retry.deadline_ms} ms: {error}") from error
        await asyncio.sleep(delay_s)
        self._delay_s = min(2 * self._delay_s, self._retry.max_delay_ms / 1000)
