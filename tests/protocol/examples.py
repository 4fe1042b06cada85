"""Messages to test with, made from the declarations themselves: blank, filled to the brim, and random ones.

Whatever these build stays within what a version carries, so that it must come back equal from the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

from hypothesis import strategies as st

from protocol.apis import API
from protocol.errors import ErrorCode
from protocol.schema import Field, Kind, Layout, layout_of
from protocol.types import Api, Message

__all__ = ["BODIES", "Body", "blank", "filled", "messages"]

_RANGES = {"int8": 7, "int16": 15, "int32": 31, "int64": 63}
_WIDE = "wide" * 40
"""Longer than 127 bytes: its compact length takes two."""


class Body(NamedTuple):
    """One message of one API in one version."""

    api: Api
    version: int
    is_request: bool

    @property
    def cls(self) -> type[Message]:
        return self.api.request if self.is_request else self.api.response

    @property
    def flexible(self) -> bool:
        return self.version >= self.api.flexible_since

    @property
    def layout(self) -> Layout:
        return layout_of(self.cls, self.version, self.flexible)

    def __str__(self) -> str:
        return f"{self.cls.__name__}-v{self.version}"


BODIES = [
    Body(api, version, is_request)
    for api in API.values()
    for version in range(api.min_version, api.max_version + 1)
    for is_request in (True, False)
]


def blank(layout: Layout) -> Message:
    """The smallest message: nulls wherever allowed, else empty, and no tags."""
    return _build(layout, lambda field: None if field.nullable else _empty(field.kind), lambda field: field.default)


def filled(layout: Layout, numbers: Iterator[int] | None = None) -> Message:
    """Every field, tag and array holds something, and no two numbers are the same, so that nothing can be swapped."""
    numbers = count(1) if numbers is None else numbers

    def value(kind: Kind, name: str) -> Any:
        if kind.name == "array":
            assert kind.element is not None
            return [value(kind.element, name) for _ in range(2)]
        if kind.layout is not None:
            return filled(kind.layout, numbers)
        number = next(numbers)
        if name == "error_code":
            return number % len(ErrorCode) - 1
        return {
            "bool": True,
            "string": f"{name}-{number}",
            "bytes": b"bytes-%d" % number,
            "records": b"records-%d" % number * 20,
            "uuid": number.to_bytes(16, "big"),
            "int8": number % 100 + 2,
        }.get(kind.name, number)

    return _build(layout, lambda f: value(f.kind, f.name), lambda f: value(f.kind, f.name))


def messages(layout: Layout) -> st.SearchStrategy[Message]:
    """Any message of this layout."""
    fields = {field.name: _field(field) for field in (*layout.fields, *layout.tagged)}
    return st.builds(layout.cls, **fields)


def _build(layout: Layout, regular: Callable[[Field], Any], tagged: Callable[[Field], Any]) -> Message:
    values = {field.name: regular(field) for field in layout.fields} | {f.name: tagged(f) for f in layout.tagged}
    return layout.cls(**values)


def _empty(kind: Kind) -> Any:
    if kind.layout is not None:
        return blank(kind.layout)
    return {"array": [], "string": "", "bytes": b"", "records": b"", "uuid": bytes(16), "bool": False}.get(kind.name, 0)


def _field(field: Field) -> st.SearchStrategy[Any]:
    strategy = _value(field.kind, field.name)
    if field.tag is None:
        return st.none() | strategy if field.nullable else strategy
    # What equals its default is not sent, and what is not sent comes back as the default itself.
    nothing = field.kind.layout.cls() if field.kind.layout is not None else [] if field.default == () else field.default
    return strategy.map(lambda value: field.default if value == nothing else value) | st.just(field.default)


def _value(kind: Kind, name: str) -> st.SearchStrategy[Any]:
    if kind.name == "array":
        assert kind.element is not None
        return st.lists(_value(kind.element, name), max_size=3)
    if kind.layout is not None:
        return messages(kind.layout)
    if name.endswith("error_code"):
        return st.sampled_from([int(code) for code in ErrorCode])
    if name in ("log_append_time_ms", "retention_time_ms", "transaction_start_time_ms"):
        # kio turns these into dates and durations, which cannot hold every int64; of some it knows no "none".
        return st.integers(min_value=0 if name == "transaction_start_time_ms" else -1, max_value=2**41)
    if kind.name in _RANGES:
        top = 2 ** _RANGES[kind.name]
        return st.integers(min_value=-top, max_value=top - 1)
    return _OTHERS[kind.name]


_OTHERS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.just(_WIDE),
    "bytes": st.binary(max_size=16) | st.just(bytes(300)),
    "records": st.binary(max_size=16) | st.sampled_from([bytes(300), bytes(20_000), bytes(2_100_000)]),
    "uuid": st.binary(min_size=16, max_size=16),
}
