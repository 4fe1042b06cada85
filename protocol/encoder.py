"""Writes encode functions.

Small pieces collect in a list that is joined before each large record buffer and once at the end. Values out of range
raise `struct.error`, a None where null is not allowed `TypeError` or `AttributeError`: those are our mistakes, not a
peer's, and are not translated.
"""

from __future__ import annotations

import struct

from protocol.emitter import Emitter
from protocol.runtime import PACK_INTS, encode_uvarint
from protocol.schema import FIXED, Field, Kind, Layout

__all__ = ["Encoder"]


class Encoder(Emitter):
    """Writes one encode function: `(message, parts) -> None`."""

    def __init__(self) -> None:
        super().__init__("message", "parts", "small", "put")
        self.scope["pack"] = struct.pack
        self._run: list[tuple[str, str]] = []
        self._small = "small"
        self._put = "put"
        self._flexible = False

    def function(self, name: str, layout: Layout) -> str:
        self._flexible = layout.flexible
        with self.block(f"def {name}(message, parts):"):
            self.line("small = []")
            self.line("put = small.append")
            self._struct(layout, "message")
            self._flush()
            self.line("parts.append(b''.join(small))")
        return "\n".join(self.lines) + "\n"

    def _struct(self, layout: Layout, owner: str) -> None:
        for field in layout.fields:
            self._value(field.kind, field.nullable, f"{owner}.{field.name}", field.name)
        if layout.tagged:
            self._tags(layout, owner)
        elif layout.flexible:
            self._run.append(("x", ""))

    def _value(self, kind: Kind, nullable: bool, value: str, wish: str) -> None:
        """Write the value of the expression `value`."""
        if kind.name in FIXED:
            self._run.append((FIXED[kind.name][0], value))
        elif kind.name == "struct":
            self._nested(kind, nullable, value, wish)
        elif kind.name == "array":
            self._array(kind, nullable, value, wish)
        elif kind.name == "records":
            self._records(nullable, value, wish)
        else:
            data = self.name(wish)
            self.line(f"{data} = {value}")
            encoded = f"{data}.encode()" if kind.name == "string" else data
            self._length(data, encoded, nullable, wish, "h" if kind.name == "string" else "i")
            self.line(f"{self._put}({data})")

    def _length(self, data: str, encoded: str, nullable: bool, wish: str, code: str) -> None:
        """Turn `data` into bytes and write how many there are."""
        plus_one = " + 1" if self._flexible else ""
        if not nullable:
            if encoded != data:
                self.line(f"{data} = {encoded}")
            self._head(f"len({data}){plus_one}", wish, code)
            return
        count = self.name(f"{wish}_n")
        with self.block(f"if {data} is None:"):
            self.line(f"{data} = b''")
            self.line(f"{count} = {0 if self._flexible else -1}")
        with self.block("else:"):
            if encoded != data:
                self.line(f"{data} = {encoded}")
            self.line(f"{count} = len({data}){plus_one}")
        self._head(count, wish, code)

    def _head(self, count: str, wish: str, code: str, large: bool = False) -> None:
        """Write a length or count, as varint where the version is flexible, at the end of the run."""
        if not self._flexible:
            self._run.append((code, count))
            self._flush()
            return
        if not count.isidentifier():
            expression, count = count, self.name(f"{wish}_n")
            self.line(f"{count} = {expression}")
        run, self._run = self._run, []
        if not run:
            self.line(f"{self._put}(VARINT[{count}] if {count} < 128 else encode_uvarint({count}))")
            return
        with self.block(f"if {count} < 128:"):
            self._run = [*run, ("B", count)]
            self._flush()
        if large:
            with self.block(f"elif 16384 <= {count} < 2097152:"):
                low, middle, high = f"{count} & 127 | 128", f"{count} >> 7 & 127 | 128", f"{count} >> 14"
                self._run = [*run, ("B", low), ("B", middle), ("B", high)]
                self._flush()
        with self.block("else:"):
            self._run = run
            self._flush()
            self.line(f"{self._put}(encode_uvarint({count}))")

    def _nested(self, kind: Kind, nullable: bool, value: str, wish: str) -> None:
        assert kind.layout is not None
        name = self.name(wish)
        self.line(f"{name} = {value}")
        if not nullable:
            self._struct(kind.layout, name)
            return
        self._flush()
        with self.block(f"if {name} is None:"):  # KIP-893
            self.line(f"{self._put}(b'\\xff')")
        with self.block("else:"):
            self.line(f"{self._put}(b'\\x01')")
            self._struct(kind.layout, name)
            self._flush()

    def _array(self, kind: Kind, nullable: bool, value: str, wish: str) -> None:
        element = kind.element
        assert element is not None
        name = self.name(wish)
        self.line(f"{name} = {value}")
        count = f"len({name}) + 1" if self._flexible else f"len({name})"
        if nullable:
            null_count = self.name(f"{wish}_n")
            self.line(f"{null_count} = {0 if self._flexible else -1} if {name} is None else {count}")
            count = null_count
        self._head(count, wish, "i")
        with self.block(f"if {name}:"):
            if element.name.startswith("int"):
                code = FIXED[element.name][0]
                table = self.scope[f"PACK_{code}"] = PACK_INTS[code]
                size = f"len({name})"
                short, long = f"PACK_{code}[{size}](*{name})", f"pack('!%d{code}' % {size}, *{name})"
                self.line(f"{self._put}({short} if {size} < {len(table)} else {long})")
                return
            item = self.name(wish.removesuffix("s") + "_item")
            layout = element.layout
            if layout is not None and layout.fixed_size() is not None and not layout.tagged:
                codes = "".join(FIXED[f.kind.name][0] for f in layout.fields) + "x" * layout.flexible
                values = ", ".join(f"{item}.{f.name}" for f in layout.fields)
                self.line(f"{self._small}.extend([{self.packer('pack', codes)}({values}) for {item} in {name}])")
                return
            with self.block(f"for {item} in {name}:"):
                if layout is not None:
                    self._struct(layout, item)
                else:
                    self._value(element, False, item, wish.removesuffix("s"))
                self._flush()

    def _records(self, nullable: bool, value: str, wish: str) -> None:
        data, count = self.name(wish), self.name(f"{wish}_n")
        null_count, plus_one = (0, " + 1") if self._flexible else (-1, "")
        self.line(f"{data} = {value}")
        if nullable:
            with self.block(f"if {data} is None:"):
                self.line(f"{data} = b''")
                self.line(f"{count} = {null_count}")
        with self.block(f"{'elif' if nullable else 'if'} {data}.__class__ is list:"):
            self.line(f"{count} = sum(map(len, {data})){plus_one}")
        with self.block("else:"):
            self.line(f"{count} = len({data}){plus_one}")
        self._head(count, wish, "i", large=True)
        with self.block(f"if {data}.__class__ is list:"):
            self.line(f"put_records(small, parts, {data})")
        with self.block(f"elif {count} > JOIN_BELOW_BYTES:"):
            self.line("parts.append(b''.join(small))")
            self.line("small.clear()")
            self.line(f"parts.append({data})")
        with self.block("else:"):
            self.line(f"put({data})")

    def _tags(self, layout: Layout, owner: str) -> None:
        """Tags in ascending order, those that hold their default left out."""
        self._flush()
        values = {field.name: self.name(field.name) for field in layout.tagged}
        for field in layout.tagged:
            self.line(f"{values[field.name]} = {owner}.{field.name}")
        absent = " and ".join(self._is_default(field, values[field.name]) for field in layout.tagged)
        with self.block(f"if {absent}:"):
            self.line(f"{self._put}(b'\\0')")
        with self.block("else:"):
            count, tags = self.name("tag_count"), self.name("tags")
            self.line(f"{count} = 0")
            self.line(f"{tags} = []")
            for field in layout.tagged:
                with self.block(f"if not ({self._is_default(field, values[field.name])}):"):
                    self._tagged(field, values[field.name], tags)
                    self.line(f"{count} += 1")
            self.line(f"{self._put}(encode_uvarint({count}))")
            self.line(f"{self._small}.extend({tags})")

    def _is_default(self, field: Field, value: str) -> str:
        if field.kind.layout is not None:
            blank = self.constant(field.kind.layout.cls(), f"NO_{field.name}".upper())
            return f"({value} is None or {value} == {blank})"
        if field.default is None:
            return f"{value} is None"
        if field.kind.name == "array":
            return f"not {value}"
        return f"{value} == {self.constant(field.default, field.name)}"

    def _tagged(self, field: Field, value: str, tags: str) -> None:
        assert field.tag is not None
        outer = self._small, self._put
        self._small = self.name("tag_parts")
        self._put = f"{self._small}.append"
        data = self.name("tag_bytes")
        self.line(f"{self._small} = []")
        self._value(field.kind, field.nullable, value, field.name)
        self._flush()
        self.line(f"{data} = b''.join({self._small})")
        self.line(f"{tags} += ({encode_uvarint(field.tag)!r}, encode_uvarint(len({data})), {data})")
        self._small, self._put = outer

    def _flush(self) -> None:
        """Write the run that has collected."""
        run, self._run = self._run, []
        if not run:
            return
        codes = "".join(code for code, _ in run)
        if set(codes) == {"x"}:
            self.line(f"{self._put}({bytes(len(codes))!r})")
        else:
            self.line(f"{self._put}({self.packer('pack', codes)}({', '.join(value for _, value in run if value)}))")
