"""What both emitters share: lines of source, names that do not clash, and the objects the source refers to."""

from __future__ import annotations

import keyword
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from protocol import runtime
from protocol.types import NULL_UUID

__all__ = ["Emitter"]


class Emitter:
    """Writes one function. `scope` becomes its globals."""

    def __init__(self, *reserved: str) -> None:
        self.lines: list[str] = []
        self.scope: dict[str, Any] = {name: getattr(runtime, name) for name in runtime.__all__}
        self._depth = 0
        self._taken = {*reserved, *self.scope, "NULL_UUID"}

    def line(self, text: str) -> None:
        self.lines.append("    " * self._depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Everything written inside is indented below `head`."""
        self.line(head)
        self._depth += 1
        start = len(self.lines)
        yield
        if len(self.lines) == start:
            self.line("pass")
        self._depth -= 1

    def name(self, wish: str) -> str:
        """A local variable that nothing else uses."""
        if keyword.iskeyword(wish):
            wish += "_"
        name, number = wish, 1
        while name in self._taken:
            number += 1
            name = f"{wish}_{number}"
        self._taken.add(name)
        return name

    def constant(self, value: object, wish: str) -> str:
        """An expression for `value`: its literal where it has one, else a global."""
        if value is NULL_UUID:
            self.scope["NULL_UUID"] = value
            return "NULL_UUID"
        if value is None or isinstance(value, bool | int | float | str | bytes) or value == ():
            return repr(value)
        for name, known in self.scope.items():
            if known is value:
                return name
        name = self.name(wish)
        self.scope[name] = value
        return name

    def packer(self, method: str, codes: str) -> str:
        """The name of a bound `struct.Struct` method for a big-endian format."""
        name = f"{method}_{codes.replace('16s', 'u').replace('?', 'z')}"
        if name not in self.scope:
            self.scope[name] = getattr(struct.Struct("!" + codes), {"unpack": "unpack_from"}.get(method, method))
        return name
