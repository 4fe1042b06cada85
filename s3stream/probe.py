"""Proves at start that a store does what everything else is built on, and refuses it otherwise.

Not every store that speaks S3 honours conditional writes; one that ignores the condition would silently let two
controllers overwrite each other. So each condition is tried both ways: it must let a write through where it holds,
and refuse it, leaving the object as it was, where it does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress

from s3stream.objectstore import (
    AccessDenied,
    NotFound,
    ObjectStore,
    ObjectStoreError,
    PreconditionFailed,
    Unavailable,
    WriteConflict,
)
from s3stream.paths import Paths

__all__ = ["UnsuitableObjectStore", "probe"]


_PAUSE_S = 1.0


class UnsuitableObjectStore(ObjectStoreError):
    """The store does not keep a promise that the cluster's data depends on. Use another one."""


async def probe(store: ObjectStore, paths: Paths, nonce: str, *, patience_ms: int = 0) -> None:
    """Write, replace, list, read and delete one small object.

    Args:
        nonce: makes the key this start's own.
        patience_ms: how long to try again where the store itself has given up.

    Raises:
        UnsuitableObjectStore: a promise is broken; the message says which.
        AccessDenied, Unavailable: it could not be found out.
    """
    keys = [paths.probe(nonce)]
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_ms / 1000
    try:
        while True:
            try:
                await _probe(store, keys[-1], nonce)
                await store.delete_many(keys)
            except UnsuitableObjectStore:
                await store.delete_many(keys)
                raise
            except (Unavailable, WriteConflict):
                if loop.time() + _PAUSE_S >= deadline:
                    raise
                await asyncio.sleep(_PAUSE_S)
                nonce = f"{nonce}+"  # an attempt of before may have left its object, or may yet
                keys.append(paths.probe(nonce))
            else:
                return
    except AccessDenied as error:
        if error.is_advised:
            raise AccessDenied(f"{store.uri}: {error}", is_advised=True) from error
        raise AccessDenied(
            f"{store.uri}: {error}; put, get, list and delete under {paths.prefix!r} must be allowed"
        ) from error


async def _probe(store: ObjectStore, key: str, nonce: str) -> None:
    contents = [f"{number} {nonce}".encode() for number in ("first", "second", "third")]
    first = await _written(store, "If-None-Match", key, contents[0], store.put_if_absent(key, [contents[0]]))
    try:
        await _try_further(store, key, contents, first)
    except AccessDenied:
        with suppress(ObjectStoreError):  # whoever starts it again and again would leave an object each time
            await store.delete_many([key])
        raise


async def _try_further(store: ObjectStore, key: str, contents: Sequence[bytes], first: str) -> None:
    await _refused(store, "If-None-Match", key, contents[0], store.put_if_absent(key, [contents[1]]))
    second = await _written(store, "If-Match", key, contents[1], store.put_if_match(key, [contents[1]], first))
    await _refused(store, "If-Match", key, contents[1], store.put_if_match(key, [contents[2]], first))
    if second == first:
        raise UnsuitableObjectStore(f"{store.uri} gives different contents the same entity tag")
    absent = f"{key}-absent"
    try:
        await store.put_if_match(absent, [contents[2]], first)
    except (PreconditionFailed, NotFound):
        pass
    else:
        await store.delete_many([absent])
        raise UnsuitableObjectStore(f"{store.uri} ignores If-Match where there is no object")
    if await store.get_range(key, 1, 4) != b"eco" or await store.get_tail(key, 2) != (
        contents[1][-2:],
        len(contents[1]),
    ):
        raise UnsuitableObjectStore(f"{store.uri} does not read the ranges it is asked for")
    if [found.key async for found in store.list(key)] != [key]:
        raise UnsuitableObjectStore(f"{store.uri} does not list what was just written")


async def _written(store: ObjectStore, condition: str, key: str, content: bytes, write: Awaitable[str]) -> str:
    """The entity tag of a write whose condition holds. It may be refused by its own first attempt, whose reply was lost."""
    try:
        return await write
    except PreconditionFailed as error:
        try:
            found = await store.get(key)
        except NotFound:
            found = None
        if found is None or found.data != content:
            raise UnsuitableObjectStore(f"{store.uri} refuses a write whose {condition} holds") from error
        return found.etag


async def _refused(store: ObjectStore, condition: str, key: str, expected: bytes, write: Awaitable[str]) -> None:
    try:
        await write
    except (PreconditionFailed, WriteConflict):
        if (await store.get(key)).data != expected:
            raise UnsuitableObjectStore(f"{store.uri} refuses a write whose {condition} fails, but does it") from None
        return
    raise UnsuitableObjectStore(
        f"{store.uri} ignores {condition}: without conditional writes two nodes can destroy each other's data"
    )
