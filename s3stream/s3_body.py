"""Bodies of S3 requests and answers: sent from the caller's memory, received into one buffer; and the parts of large objects.

Always true: what is handed to the transport is a copy, made piece by piece while it is sent. So the caller's memory may be
reused as soon as a call has ended, also when it was cancelled or timed out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from s3stream.objectstore import Buffer
from s3stream.s3_errors import TryAgain
from s3stream.s3_progress import current_progress
from s3stream.s3_ranges import ReceivedBody

__all__ = ["Body", "Pieces", "copies", "read_body", "send_body"]

_SEND_PIECE_BYTES = 256 << 10
"""Handed to the transport at a time: large enough for few system calls, small enough to stay in the CPU's cache."""


class Body:
    """Parts as botocore takes a file: it asks for the length only, and `send_body` sends them."""

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self.parts = parts
        self.size = sum(map(len, parts))

    def __len__(self) -> int:
        return self.size

    def read(self, _: int = -1) -> bytes:
        """All of it; only a custom signer would ask."""
        return b"".join(self.parts)


class _BodyPayload(Payload):
    """Sends parts piece by piece, each a copy that the transport may keep (see the top of this module)."""

    def __init__(self, body: Body) -> None:
        super().__init__(body, content_type="application/octet-stream")
        self._size = body.size
        self._begun = False

    async def write(self, writer: AbstractStreamWriter) -> None:
        """See aiohttp, which repeats a PUT by itself when its connection is closed. It must not, unseen: a refusal would no
        longer mean that nothing was written."""
        if self._begun:
            raise ConnectionResetError("the connection was closed before the answer came")
        self._begun = True
        progress = current_progress()
        if progress is not None:
            progress.expect(self._value.size)
        for piece in copies(self._value.parts):
            await writer.write(piece)
            if progress is not None:
                progress.moved()

    def seek(self, offset: int) -> None:
        """Botocore rewinds a body before it sends the request once more, to another region; it makes a new one of these then."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """See aiohttp."""
        body: Body = self._value
        return body.read().decode(encoding, errors)


def copies(parts: Sequence[Buffer]) -> Iterator[bytes]:
    small: list[Buffer] = []
    size = 0
    for part in parts:
        view = memoryview(part)
        for begin in range(0, len(view), _SEND_PIECE_BYTES):
            piece = view[begin : begin + _SEND_PIECE_BYTES]
            if size + len(piece) > _SEND_PIECE_BYTES:
                yield b"".join(small)
                small, size = [], 0
            small.append(piece)
            size += len(piece)
    if small:
        yield b"".join(small)


def send_body(request: Any, **_: Any) -> None:
    """Have aiohttp send a body's parts (a handler of botocore's event before-send)."""
    if isinstance(request.body, Body):
        # Added because the body looks like a file. It costs a round trip, and is not part of the signature.
        if "Expect" in request.headers:
            del request.headers["Expect"]
        request.body = _BodyPayload(request.body)


async def read_body(response: dict[str, Any]) -> bytes | bytearray:
    """The whole body, piece by piece as it arrives: gathered by aiohttp and joined at the end it costs half as much again."""
    async with response["Body"] as stream:
        if isinstance(stream.raw_stream, ReceivedBody):
            return stream.raw_stream.data
        size = response.get("ContentLength")
        if size is None:  # a store that sends it in chunks
            whole: bytes = await stream.read()
            return whole
        progress = current_progress()
        if progress is not None:
            progress.expect(size)
        data = bytearray(size)
        view = memoryview(data)
        position = 0
        async for piece in stream.raw_stream.content.iter_any():
            end = position + len(piece)
            view[position:end] = piece
            position = end
            if progress is not None:
                progress.moved()
        if position != size:  # aiohttp says so first
            raise TryAgain(f"a body of {size} bytes ended after {position}")
        return data


class Pieces:
    """Gathers buffers of any size into parts of one size, as S3 wants them (all but the last).

    With `kept_bytes` it keeps at least so many for the rest, so that what comes last is no smaller part than S3 takes.
    """

    def __init__(self, part_size_bytes: int, *, kept_bytes: int = 0) -> None:
        self._part_size = part_size_bytes
        self._kept = kept_bytes
        self._gathered: list[Buffer] = []
        self._size = 0

    def add(self, part: Buffer) -> Iterator[list[Buffer]]:
        view = memoryview(part)
        while self._size + len(view) >= self._part_size + self._kept:
            if self._size >= self._part_size:
                yield self._cut()
                continue
            split = self._part_size - self._size
            yield [*self._gathered, view[:split]]
            self._gathered, self._size = [], 0
            view = view[split:]
        if len(view):
            self._gathered.append(bytes(view))  # the source may reuse its buffer
            self._size += len(view)

    def _cut(self) -> list[Buffer]:
        """A part of what is gathered already."""
        part: list[Buffer] = []
        missing = self._part_size
        while missing:
            first = memoryview(self._gathered.pop(0))
            part.append(first[:missing])
            if len(first) > missing:
                self._gathered.insert(0, first[missing:])
            missing -= len(part[-1])
        self._size -= self._part_size
        return part

    def rest(self) -> list[Buffer]:
        """What is left, taken out."""
        rest, self._gathered, self._size = self._gathered, [], 0
        return rest
