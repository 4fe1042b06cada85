"""Counts the error codes in a response, wherever its message has them.

Always true: what is looked at is worked out once per message, from its declaration; answers without such fields cost one look-up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

from protocol.apis import API
from protocol.schema import Layout, layout_of

__all__ = ["error_counter"]

Count = Callable[[Any, Counter[int]], None]


@cache
def error_counter(api_key: int) -> Count | None:
    """What adds the error codes of a response of this API to a counter; None where it has no place for any."""
    api = API[api_key]
    return _counter(layout_of(api.response, api.max_version, api.max_version >= api.flexible_since))


def _counter(layout: Layout) -> Count | None:
    codes: list[str] = []
    structs: list[tuple[str, Count]] = []
    arrays: list[tuple[str, Count]] = []
    for field in (*layout.fields, *layout.tagged):
        kind = field.kind
        if kind.name == "int16" and field.name.endswith("error_code"):
            codes.append(field.name)
            continue
        element = kind.element if kind.name == "array" else kind
        inner = _counter(element.layout) if element is not None and element.layout is not None else None
        if inner is not None:
            (arrays if kind.name == "array" else structs).append((field.name, inner))
    if not (codes or structs or arrays):
        return None

    def count(message: Any, errors: Counter[int]) -> None:
        for name in codes:
            code = getattr(message, name)
            if code:
                errors[code] += 1
        for name, inner in structs:
            found = getattr(message, name)
            if found is not None:
                inner(found, errors)
        for name, inner in arrays:
            for item in getattr(message, name) or ():
                inner(item, errors)

    return count
