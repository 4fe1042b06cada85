"""Reads declarations: a `Message` class and a version become a `Layout`, the exact wire order of that version.

Pure. A declaration that makes no sense (an unknown type, a tag before flexible versions, a nullable number) raises
`TypeError` here, when the version is first compiled, with the field's name.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from protocol.types import Message, Wire, nullable_since, since, tag, until

__all__ = ["FIXED", "MAX_NESTING", "Field", "Kind", "Layout", "layout_of"]

MAX_NESTING = 8
"""Deepest nesting of structs. Kafka's deepest message has five levels; declarations cannot recurse."""

FIXED = {
    "bool": ("?", 1),
    "int8": ("b", 1),
    "int16": ("h", 2),
    "int32": ("i", 4),
    "int64": ("q", 8),
    "float64": ("d", 8),
    "uuid": ("16s", 16),
}
"""Fixed-width kinds: their `struct` code and size in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The type of a value: a fixed-width name, "string", "bytes", "records", "struct" or "array"."""

    name: str
    element: Kind | None = None
    layout: Layout | None = None

    def fixed_size(self) -> int | None:
        """Size in bytes where every value has the same one and holds no tags, else None."""
        return FIXED[self.name][1] if self.name in FIXED else None

    def least_size(self, flexible: bool) -> int:
        """Smallest encoding in bytes; bounds how many elements an array may claim before any is read."""
        if self.name in FIXED:
            return FIXED[self.name][1]
        if self.name == "struct":
            assert self.layout is not None
            return self.layout.least_size()
        return 1 if flexible else 2 if self.name == "string" else 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    name: str
    kind: Kind
    nullable: bool
    default: object
    tag: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One struct in one version. `arguments` are the class's positional arguments, `None` where the version lacks one."""

    cls: type[Message]
    flexible: bool
    fields: tuple[Field, ...]
    tagged: tuple[Field, ...]
    arguments: tuple[tuple[str, object, bool], ...]
    """Name, default and presence of every declared field, in the order of the constructor."""

    def fixed_size(self) -> int | None:
        """Size in bytes of the fields where all are fixed-width and not nullable, tag section excluded; else None."""
        total = 0
        for field in self.fields:
            size = field.kind.fixed_size()
            if size is None or field.nullable:
                return None
            total += size
        return total

    def least_size(self) -> int:
        fields = sum(
            1 if f.nullable and f.kind.name == "struct" else f.kind.least_size(self.flexible) for f in self.fields
        )
        return max(1, fields + self.flexible)


def layout_of(cls: type[Message], version: int, flexible: bool, depth: int = 0) -> Layout:
    """Lay out `cls` as of `version`.

    Raises:
        TypeError: the declaration is wrong.
    """
    if depth > MAX_NESTING:
        raise TypeError(f"{cls.__name__}: nested deeper than {MAX_NESTING} structs")
    hints = get_type_hints(cls, include_extras=True)
    defaults = cls.__struct_defaults__
    if len(defaults) != len(cls.__struct_fields__):
        raise TypeError(f"{cls.__name__}: every field needs a default")
    fields: list[Field] = []
    tagged: list[Field] = []
    arguments: list[tuple[str, object, bool]] = []
    for name, default in zip(cls.__struct_fields__, defaults, strict=True):
        try:
            field = _field(name, hints[name], default, version, flexible, depth)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}.{name}: {error}") from None
        arguments.append((name, default, field is not None))
        if field is not None:
            (fields if field.tag is None else tagged).append(field)
    tagged.sort(key=_tag_number)
    if len({field.tag for field in tagged}) < len(tagged):
        raise TypeError(f"{cls.__name__}: two fields share a tag")
    return Layout(cls=cls, flexible=flexible, fields=tuple(fields), tagged=tuple(tagged), arguments=tuple(arguments))


def _field(name: str, hint: Any, default: object, version: int, flexible: bool, depth: int) -> Field | None:
    inner, marks = _unwrap(hint)
    if any(isinstance(m, since) and version < m.version for m in marks):
        return None
    if any(isinstance(m, until) and version > m.version for m in marks):
        return None
    number = next((m.number for m in marks if isinstance(m, tag)), None)
    if number is not None and not flexible:
        raise TypeError(f"tagged in version {version}, which is not flexible")
    optional = False
    if get_origin(inner) in (Union, types.UnionType) and type(None) in get_args(inner):
        optional = True
        rest = tuple(a for a in get_args(inner) if a is not type(None))
        inner, more = _unwrap(rest[0] if len(rest) == 1 else Union[rest])  # noqa: UP007
        marks = (*marks, *more)
    kind = _kind(inner, marks, version, flexible, depth)
    nullable = optional and all(version >= m.version for m in marks if isinstance(m, nullable_since))
    if number is not None and kind.name == "struct":
        if not optional or default is not None:
            raise TypeError("a tagged struct must be `X | None = None`")
        nullable = False
    elif nullable and kind.name in FIXED:
        raise TypeError(f"{kind.name} cannot be null")
    if number is not None and kind.name == "records":
        raise TypeError("records cannot be tagged")
    return Field(name=name, kind=kind, nullable=nullable, default=default, tag=number)


def _kind(inner: Any, marks: Sequence[object], version: int, flexible: bool, depth: int) -> Kind:
    wire = next((m.kind for m in marks if isinstance(m, Wire)), None)
    if wire is not None:
        return Kind(name=wire)
    if isinstance(inner, type) and issubclass(inner, Message):
        return Kind(name="struct", layout=layout_of(inner, version, flexible, depth + 1))
    if get_origin(inner) is Sequence:
        element, element_marks = _unwrap(get_args(inner)[0])
        kind = _kind(element, element_marks, version, flexible, depth)
        if kind.name in ("array", "records"):
            raise TypeError(f"array of {kind.name}")
        return Kind(name="array", element=kind)
    raise TypeError(f"{inner!r} is no wire type; use the names of protocol.types")


def _unwrap(hint: Any) -> tuple[Any, tuple[object, ...]]:
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        return inner, tuple(marks)
    return hint, ()


def _tag_number(field: Field) -> int:
    assert field.tag is not None
    return field.tag
