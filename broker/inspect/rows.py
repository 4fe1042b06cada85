"""What tools tell: rows, each one JSON object or a few lines of text. And how sizes, times and bytes are written."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final, TextIO

import msgspec

__all__ = [
    "DamageRow",
    "NoteRow",
    "Row",
    "age",
    "emit",
    "offsets",
    "plural",
    "ranges_text",
    "shortened",
    "size",
    "when",
]

_SHOWN_BYTES: Final = 60
"""Of a key or value: enough to recognise a record, little enough for one line."""


def _kind(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name.removesuffix("Row")).lower()


class Row(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag=_kind):
    """One thing that was found. As JSON it has its fields, and `kind`."""

    def text(self) -> str:
        """The same for people."""
        raise NotImplementedError


class NoteRow(Row, frozen=True, kw_only=True):
    """Something that the reader should know: what could not be looked at, and why."""

    message: str

    def text(self) -> str:
        return f"note: {self.message}"


class DamageRow(Row, frozen=True, kw_only=True):
    """Something that is not as it was written."""

    message: str

    def text(self) -> str:
        return f"DAMAGE: {self.message}"


async def emit(rows: AsyncGenerator[Row], *, as_json: bool, out: TextIO | None = None) -> bool:
    """Print rows as they come, JSON as one object a line; tells whether there was damage.

    A reader that has enough (`| head`) ends it: then what the rows are made from is closed in order.
    """
    out = out or sys.stdout
    encoder = msgspec.json.Encoder()
    damaged = False
    async with aclosing(rows):
        async for row in rows:
            damaged = damaged or isinstance(row, DamageRow)
            try:
                print(encoder.encode(row).decode() if as_json else row.text(), file=out, flush=True)
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # else the interpreter complains at its end
                break
    return damaged


def size(size_bytes: int) -> str:
    """`512 B`, `1.5 KiB`, `64.0 MiB`."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def when(time_ms: int) -> str:
    """A wall-clock time in UTC; `-` for none."""
    if time_ms < 0:
        return "-"
    try:
        moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def age(age_ms: int) -> str:
    """`12 s`, `3.5 min`, `2.0 h`, `4.1 d`."""
    seconds = age_ms / 1000
    if seconds < 120:
        return f"{seconds:.0f} s"
    for unit, length, limit in (("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def offsets(base_offset: int, end_offset: int) -> str:
    """A half-open range of offsets."""
    return f"[{base_offset}, {end_offset})"


def plural(count: int, noun: str, several: str = "") -> str:
    """`1 frame`, `2 frames`."""
    return f"{count} {noun}" if count == 1 else f"{count} {several or noun + 's'}"


def shortened(data: bytes | None) -> str | None:
    """The beginning of a key or value: as text where it is text, else as hex."""
    if data is None:
        return None
    head = data[:_SHOWN_BYTES]
    rest = f"… ({len(data)} bytes)" if len(data) > _SHOWN_BYTES else ""
    try:
        shown = head.decode()
    except UnicodeDecodeError as error:
        if not rest or error.start < len(head) - 3:
            return f"0x{head.hex()}{rest}"
        shown = head[: error.start].decode()  # a character was cut in the middle
    if not shown.isprintable():
        return f"0x{head.hex()}{rest}"
    return shown + rest


def ranges_text(ranges: Sequence[tuple[int, int]]) -> str:
    """Several ranges of offsets."""
    return ", ".join(offsets(low, high) for low, high in ranges) or "none"
