"""Writes decode functions.

The frame's end is checked once at the end of the message: until then an overrun leaves a position past the end, at which
the next read fails by itself, since slices of a memoryview are cut short and everything else raises. An array is refused
before it is read when its elements could not fit into what is left of the frame, whatever their content.

Tags are taken in any order, and the last of two alike counts, as in Kafka's broker; writers must have them ascend
(KIP-482). A known tag whose size is not its value's is refused, though Kafka would go on.
"""

from __future__ import annotations

import itertools
import struct

from protocol.emitter import Emitter
from protocol.runtime import MAX_STRING_BYTES, UNPACK_INTS
from protocol.schema import FIXED, Field, Kind, Layout

__all__ = ["Decoder"]


class Decoder(Emitter):
    """Writes one decode function: `(buf, pos, budget) -> message`, all of whose arrays and tags together are at most `budget`.

    Without a `max_elements`, its default, the function has no budget: `(buf, pos) -> message`.
    """

    def __init__(self, max_elements: int | None = None) -> None:
        super().__init__("buf", "pos", "end", "budget", "error")
        self._max_elements = max_elements
        self.scope["unpack_from"] = struct.unpack_from
        self._run: list[tuple[str, str]] = []
        self._flexible = False

    def function(self, name: str, layout: Layout) -> str:
        self._flexible = layout.flexible
        budget = "" if self._max_elements is None else f", budget={self._max_elements}"
        with self.block(f"def {name}(buf, pos{budget}):"):
            self.line("end = len(buf)")
            with self.block("try:"):
                message = self._struct(layout)
                with self.block("if pos > end:"):
                    self.line("overrun()")
                self.line(f"return {message}")
            # UnicodeDecodeError is a ValueError; OverflowError: a position that no longer fits an index.
            with self.block("except (StructError, IndexError, ValueError, OverflowError) as error:"):
                self.line(f'raise Malformed(f"{name[7:]}: {{error}}") from error')
        return "\n".join(self.lines) + "\n"

    def _struct(self, layout: Layout) -> str:
        """Read a struct's fields; returns the expression that constructs it."""
        values = {
            f.name: self._value(f.kind, f.nullable, f.name, f"{layout.cls.__name__}.{f.name}") for f in layout.fields
        }
        if layout.flexible:
            self._tags(layout, values)
        self._flush()
        return self._construct(layout, values)

    def _construct(self, layout: Layout, values: dict[str, str]) -> str:
        arguments = [
            values[name] if present else self.constant(default, name) for name, default, present in layout.arguments
        ]
        while arguments and not layout.arguments[len(arguments) - 1][2]:
            arguments.pop()
        return f"{self.constant(layout.cls, layout.cls.__name__)}({', '.join(arguments)})"

    def _value(self, kind: Kind, nullable: bool, wish: str, label: str) -> str:
        """Read one value into a variable, whose name is returned. Fixed-width ones appear at the next flush."""
        name = self.name(wish)
        if kind.name in FIXED:
            self._run.append((FIXED[kind.name][0], name))
        elif kind.name == "struct":
            self._nested(kind, nullable, name, wish)
        else:
            self._variable(kind, nullable, name, wish, label)
        return name

    def _nested(self, kind: Kind, nullable: bool, name: str, wish: str) -> None:
        assert kind.layout is not None
        if not nullable:
            self.line(f"{name} = {self._struct(kind.layout)}")
            return
        presence = self.name(f"{wish}_presence")  # -1 is null (KIP-893)
        self._run.append(("b", presence))
        self._flush()
        with self.block(f"if {presence} < 0:"):
            self.line(f"{name} = None")
        with self.block("else:"):
            self.line(f"{name} = {self._struct(kind.layout)}")

    def _variable(self, kind: Kind, nullable: bool, name: str, wish: str, label: str) -> None:
        """A length or count, then what it counts."""
        flexible = self._flexible
        count = self.name(f"{wish}_n")
        self._run.append(("B" if flexible else "h" if kind.name == "string" else "i", count))
        self._flush()
        if flexible:
            with self.block(f"if {count} > 127:"):
                self.line(f"{count}, pos = wide_uvarint({count}, buf, pos)")
                if kind.name == "string":
                    with self.block(f"if {count} > {MAX_STRING_BYTES + 1}:"):
                        self.line(f"too_many({label!r}, {count})")
        with self.block(f"if {count} > 0:" if flexible else f"if {count} >= 0:"):
            if kind.name == "array":
                self._array(kind, name, wish, label, count)
            else:
                stop = self.name(f"{wish}_end")
                self.line(f"{stop} = pos + {count} - 1" if flexible else f"{stop} = pos + {count}")
                view = f"buf[pos:{stop}]"
                self.line(
                    f"{name} = " + {"string": f"str({view}, 'utf-8')", "bytes": f"bytes({view})"}.get(kind.name, view)
                )
                self.line(f"pos = {stop}")
        with self.block("else:"):
            self.line(f"{name} = None" if nullable else f"null({label!r})")

    def _array(self, kind: Kind, name: str, wish: str, label: str, count: str) -> None:
        element = kind.element
        assert element is not None
        if self._flexible:
            self.line(f"{count} -= 1")
        least = element.least_size(self._flexible)
        room = f"{count} * {least} > end - pos" if least > 1 else f"{count} > end - pos"
        if self._max_elements is not None:
            self.line(f"budget -= {count}")
            room += " or budget < 0"
        with self.block(f"if {room}:"):
            self.line(f"too_many({label!r}, {count})")
        if element.name.startswith("int"):
            code, size = FIXED[element.name]
            table = self.scope[f"UNPACK_{code}"] = UNPACK_INTS[code]
            short = f"UNPACK_{code}[{count}](buf, pos)"
            long = f"unpack_from('!%d{code}' % {count}, buf, pos)"
            self.line(f"{name} = list({short} if {count} < {len(table)} else {long})")
            self.line(f"pos += {count} * {size}" if size > 1 else f"pos += {count}")
        elif element.layout is not None and element.layout.fixed_size() is not None:
            self._flat_structs(element, name, wish, label, count)
        else:
            self._loop(element, name, wish, label, count)

    def _flat_structs(self, element: Kind, name: str, wish: str, label: str, count: str) -> None:
        """Structs of fixed width, all at once, provided that none carries a tag: then every tag count is a zero byte."""
        layout = element.layout
        assert layout is not None
        width = layout.fixed_size()
        assert width is not None
        size = width + layout.flexible
        codes = "".join(FIXED[f.kind.name][0] for f in layout.fields) + "x" * layout.flexible
        values = {f.name: self.name(f.name) for f in layout.fields}
        values |= {f.name: self.constant(f.default, f.name) for f in layout.tagged}
        stop = self.name(f"{wish}_end")
        self.line(f"{stop} = pos + {count} * {size}")
        source = f"{self.packer('iter_unpack', codes)}(buf[pos:{stop}])"
        leading = [name for name, _, _ in layout.arguments[: len(layout.fields)]]
        if leading == [f.name for f in layout.fields]:
            self.scope["starmap"] = itertools.starmap
            read = f"{name} = list(starmap({self.constant(layout.cls, layout.cls.__name__)}, {source}))"
        else:
            targets = ", ".join(values[f.name] for f in layout.fields) + ("," if len(layout.fields) == 1 else "")
            read = f"{name} = [{self._construct(layout, values)} for {targets} in {source}]"
        if not layout.flexible:
            self.line(read)
            self.line(f"pos = {stop}")
            return
        with self.block(f"if bytes(buf[pos + {width}:{stop}:{size}]).count(0) == {count}:"):
            self.line(read)
            self.line(f"pos = {stop}")
        with self.block("else:"):
            self._loop(element, name, wish, label, count)

    def _loop(self, element: Kind, name: str, wish: str, label: str, count: str) -> None:
        self.line(f"{name} = []")
        with self.block(f"for _ in range({count}):"):
            if element.layout is not None:
                value = self._struct(element.layout)
            else:
                value = self._value(element, False, wish.removesuffix("s") + "_item", f"{label}[]")
            self._flush()
            self.line(f"{name}.append({value})")

    def _tags(self, layout: Layout, values: dict[str, str]) -> None:
        count = self.name("tags")
        self._run.append(("B", count))
        self._flush()
        for field in layout.tagged:
            values[field.name] = self.name(field.name)
            self.line(f"{values[field.name]} = {self.constant(field.default, field.name)}")
        with self.block(f"if {count}:"):
            with self.block(f"if {count} > 127:"):
                self.line(f"{count}, pos = wide_uvarint({count}, buf, pos)")
            if self._max_elements is not None:
                self.line(f"budget -= {count}")
                with self.block("if budget < 0:"):
                    self.line(f"too_many('{layout.cls.__name__} tags', {count})")
            if not layout.tagged:
                self.line(f"pos = skip_tags({count}, buf, pos, end)")
                return
            number, size, stop = (self.name(w) for w in ("tag", "tag_size", "tag_end"))
            with self.block(f"for _ in range({count}):"):
                self.line(f"{number}, pos = read_uvarint(buf, pos)")
                self.line(f"{size}, pos = read_uvarint(buf, pos)")
                self.line(f"{stop} = pos + {size}")
                for index, field in enumerate(layout.tagged):
                    with self.block(f"{'elif' if index else 'if'} {number} == {field.tag}:"):
                        self._tagged(field, values[field.name], layout)
                with self.block("else:"):
                    self.line(f"pos = {stop}")
                with self.block(f"if pos != {stop}:"):
                    self.line(f"bad_tag({number}, {size})")

    def _tagged(self, field: Field, variable: str, layout: Layout) -> None:
        value = self._value(field.kind, field.nullable, field.name, f"{layout.cls.__name__}.{field.name}")
        self._flush()
        self.line(f"{variable} = {value}")

    def _flush(self) -> None:
        """Read the run that has collected."""
        run, self._run = self._run, []
        if not run:
            return
        codes = "".join(code for code, _ in run)
        if codes == "B":
            self.line(f"{run[0][1]} = buf[pos]")
        else:
            targets = ", ".join(name for _, name in run) + ("," if len(run) == 1 else "")
            self.line(f"{targets} = {self.packer('unpack', codes)}(buf, pos)")
        self.line(f"pos += {struct.calcsize('!' + codes)}")
