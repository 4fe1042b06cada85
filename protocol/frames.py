"""Headers of requests and responses.

A frame is an int32 size and that many bytes: header, then body. Always true here: positions are relative to a buffer that
holds one frame without its size, and a header that does not fit raises `Malformed`.
"""

from __future__ import annotations

import struct

import msgspec

from protocol.apis import API, has_flexible_response_header
from protocol.errors import Malformed
from protocol.runtime import skip_tags, too_many
from protocol.types import Buffer

__all__ = ["RequestHeader", "parse_request_header", "parse_response_header"]

MAX_HEADER_TAGS = 127
"""Tags in a header, none of which is known so far. Each takes two bytes only, so that millions would fit into a frame: skipping
them would hold everybody up for seconds."""

_REQUEST = struct.Struct("!hhih")
_CORRELATION_ID = struct.Struct("!i")


class RequestHeader(msgspec.Struct, frozen=True, gc=False):
    """Header v1 or, for flexible versions, v2."""

    api_key: int
    api_version: int
    correlation_id: int
    client_id: str | None
    body_position: int
    """Where the body starts in the buffer that was parsed."""


def parse_request_header(buf: Buffer, pos: int = 0) -> RequestHeader:
    """Parse the header at `pos`; key and version need not be known.

    Which header version a request has depends on its key. A key that is not known is read as v1, and its body position
    means nothing; a version that is newer than known is as flexible as the newest (KIP-511 relies on it).

    Raises:
        Malformed: the header does not fit into `buf`.
    """
    try:
        api_key, api_version, correlation_id, length = _REQUEST.unpack_from(buf, pos)
        pos += 10
        client_id = None
        if length >= 0:
            # `client_id` keeps its int16 length in header v2, too.
            client_id = str(buf[pos : pos + length], "utf-8")
            pos += length
        api = API.get(api_key)
        if api is not None and api_version >= api.flexible_since:
            tags = buf[pos]
            pos += 1
            if tags:
                pos = _skip_header_tags(tags, memoryview(buf), pos)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise Malformed(f"request header: {error}") from error
    if pos > len(buf):
        raise Malformed("request header: client id reaches past the end of the frame")
    return RequestHeader(api_key, api_version, correlation_id, client_id, pos)


def parse_response_header(api_key: int, version: int, buf: Buffer, pos: int = 0) -> tuple[int, int]:
    """Correlation id of a response, and the position of its body.

    Raises:
        Malformed: the header does not fit into `buf`.
    """
    try:
        (correlation_id,) = _CORRELATION_ID.unpack_from(buf, pos)
        pos += 4
        if has_flexible_response_header(api_key, version):
            tags = buf[pos]
            pos += 1
            if tags:
                pos = _skip_header_tags(tags, memoryview(buf), pos)
    except (struct.error, IndexError) as error:
        raise Malformed(f"response header: {error}") from error
    return correlation_id, pos


def _skip_header_tags(count: int, buf: memoryview, pos: int) -> int:
    if count > MAX_HEADER_TAGS:
        too_many("request header tags", count)
    return skip_tags(count, buf, pos, len(buf))
