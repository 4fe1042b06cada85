"""Turns a declaration and a version into one straight-line decode and one encode function.

How it works: `schema.layout_of` gives the wire order; an emitter walks it and writes Python. Neighbouring fixed-width
fields collect in a *run*, which becomes one `Struct.unpack_from` or `Struct.pack`. A run also takes the length, count or
tag count of the variable field that ends it; where that is a varint, the run bets on one byte and mends the bet after.

Always true here:
- a function is compiled on first use and kept; that takes 1-3 ms;
- the source is registered with `linecache`, so tracebacks and debuggers show it (`python -m protocol show Fetch 12`);
- decoders take a flat memoryview of exactly one frame and raise nothing but `Malformed`; bytes after the message are
  ignored, as Kafka's broker ignores them;
- encoders append to a list of parts; large records go in as they are, everything else is joined in between.
"""

from __future__ import annotations

import linecache
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protocol import decoder, encoder
from protocol.errors import Malformed
from protocol.schema import layout_of
from protocol.types import Message, Parts

__all__ = ["MAX_REQUEST_ELEMENTS", "Codec", "Decode", "Encode", "compile_decoder", "compile_encoder"]

MAX_REQUEST_ELEMENTS = 1 << 19
"""Array elements and tags in one request, unless the caller allows fewer. An element of two bytes may become an object of a hundred, one of Produce with its view two
hundred, so the size of a frame alone does not bound memory (I13): this many take 110 MB at most. It is enough for 200,000
partitions, each in a topic of its own."""

Decode = Callable[..., Any]
"""(frame, position of the body, most elements) -> message; the last of them for requests only, and optional"""
Encode = Callable[[Any, Parts], None]
"""(message, parts to append to)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """A compiled function and its source."""

    call: Callable[..., Any]
    source: str


def compile_decoder(
    cls: type[Message], version: int, flexible: bool, *, max_elements: int | None = MAX_REQUEST_ELEMENTS
) -> Codec:
    """Compile the function that reads `cls` as of `version`. `max_elements` bounds all arrays of a message together."""
    emitter = decoder.Decoder(max_elements)
    name = f"decode_{cls.__name__}_v{version}"
    source = emitter.function(name, layout_of(cls, version, flexible))
    scope = {"Malformed": Malformed, "StructError": struct.error, **emitter.scope}
    return _load(name, source, scope)


def compile_encoder(cls: type[Message], version: int, flexible: bool) -> Codec:
    """Compile the function that writes `cls` as of `version`."""
    emitter = encoder.Encoder()
    name = f"encode_{cls.__name__}_v{version}"
    return _load(name, emitter.function(name, layout_of(cls, version, flexible)), emitter.scope)


def _load(name: str, source: str, scope: dict[str, Any]) -> Codec:
    filename = f"<protocol {name}>"
    exec(compile(source, filename, "exec"), scope)
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return Codec(call=scope[name], source=source)
