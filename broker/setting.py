"""What one setting is: its name, type, unit, range and meaning, and how its text is read.

Always true:
- The broker's settings (`broker.config`) and topics' (`broker.topic_config`) are tables of `Setting`: what is parsed, refused,
  listed (`tidelog config`), told to clients (DescribeConfigs) and written in docs/configuration.md comes from the same row.
- A value is a bool, an int, a float or a text; `text` and `parse` are inverses.
- What is wrong with a value is said together with what is allowed.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["INT32_MAX", "INT64_MAX", "InvalidSettings", "Kind", "Setting", "Value", "nearest", "parse_size"]

INT32_MAX = (1 << 31) - 1
INT64_MAX = (1 << 63) - 1

Value = bool | int | float | str


class InvalidSettings(Exception):
    """The settings do not make sense; the message names each of them and says what is allowed."""


_UNITS = {
    "": 1,
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
    "K": 1 << 10,
    "M": 1 << 20,
    "G": 1 << 30,
}


class Kind(enum.IntEnum):
    """Types, numbered as DescribeConfigs does (KIP-569)."""

    BOOLEAN = 1
    STRING = 2
    INT = 3
    LONG = 5
    DOUBLE = 6
    LIST = 7
    """Words, comma separated."""


_NUMBERS = (Kind.INT, Kind.LONG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of a table of settings."""

    name: str
    """Kafka's, where Kafka has one."""
    kind: Kind
    default: Value
    doc: str
    """What it does here, in plain words."""
    section: str = ""
    """Heading under which it is listed."""
    unit: str = ""
    """What a number counts: ms, bytes, partitions …"""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    """Words that are allowed, of a text or in a list; empty: any."""
    dynamic: bool = False
    """It can be changed while the broker runs (AlterConfigs), and the change is kept."""
    is_sensitive: bool = False
    """Its value is not shown."""

    @property
    def allowed(self) -> str:
        """What a value may be, in words."""
        match self.kind:
            case Kind.BOOLEAN:
                return "true or false"
            case Kind.INT | Kind.LONG | Kind.DOUBLE:
                number = "a number" if self.kind is Kind.DOUBLE else "a whole number"
                return f"{number}{self._range()}"
            case Kind.STRING:
                return f"one of {', '.join(self.choices)}" if self.choices else "text"
            case Kind.LIST:
                return f"one or more of {', '.join(self.choices)}" if self.choices else "words, comma separated"

    def _range(self) -> str:
        if self.least is not None and self.most is not None and self.most < INT64_MAX:
            return f" from {self.least} to {self.most}"
        if self.least is not None:
            return f" from {self.least}"
        return f" up to {self.most}" if self.most is not None else ""

    def parse(self, given: object, *, size_units: bool = False) -> Value:
        """The value that a text, or a value of a TOML file, stands for; checked.

        Args:
            size_units: `64MiB` is taken for a number, as settings files may write it and Kafka's clients may not.

        Raises:
            ValueError: says what is wrong and what is allowed.
        """
        value = self._parsed(given, size_units)
        problem = self.problem(value)
        if problem is not None:
            raise ValueError(problem)
        return value

    def problem(self, value: Value) -> str | None:
        """Why a value of the right type is not allowed, or None."""
        if self.kind is Kind.BOOLEAN:
            return None
        if isinstance(value, int | float):
            too_small = self.least is not None and value < self.least
            if too_small or (self.most is not None and value > self.most):
                return self._refusal(value)
        elif self.choices:
            words = self.words(value) if self.kind is Kind.LIST else (value,)
            if not words or any(word not in self.choices for word in words):
                return self._refusal(value)
        return None

    @staticmethod
    def words(value: str) -> tuple[str, ...]:
        """The words of a list."""
        return tuple(part.strip() for part in value.split(",") if part.strip())

    def text(self, value: Value) -> str:
        """A value as Kafka writes it."""
        return str(value).lower() if isinstance(value, bool) else str(value)

    def _parsed(self, given: object, size_units: bool) -> Value:
        try:
            match self.kind:
                case Kind.BOOLEAN:
                    return given if isinstance(given, bool) else _parse_bool(str(given))
                case Kind.INT | Kind.LONG:
                    return _parse_int(given, size_units)
                case Kind.DOUBLE:
                    return float(str(given))
                case _ if isinstance(given, str):
                    return given
        except ValueError:
            pass
        raise ValueError(self._refusal(given))

    def _refusal(self, given: object) -> str:
        return f"{self.name} = {given!r} is not allowed: {self.allowed}{f' ({self.unit})' if self.unit else ''}"


def _parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered not in ("true", "false"):
        raise ValueError(text)
    return lowered == "true"


def _parse_int(given: object, size_units: bool) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if not isinstance(given, str):
        raise ValueError(given)
    text = given.strip()
    if re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    if not size_units:
        raise ValueError(given)
    return parse_size(text)


def parse_size(text: str) -> int:
    """Bytes from `64KiB`, `1 GiB`, `100MB` or a plain number. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is no size (examples: 1048576, 64KiB, 1GiB)")
    unit = _UNITS[match[2].upper()]
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return found[0] if found else None
