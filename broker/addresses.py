"""How addresses are written in settings: listeners as in Kafka, and bounds for clients' addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass

from broker.setting import InvalidSettings

__all__ = ["Listener", "parse_listeners", "parse_overrides"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One `NAME://host:port`; an empty host means every interface."""

    name: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.name}://{host}:{self.port}"


_LISTENER = re.compile(
    r"^(?P<name>[A-Za-z][A-Za-z0-9_]*)://(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d+)$"
)


def parse_listeners(text: str, *, what: str = "listeners") -> tuple[Listener, ...]:
    """Parse Kafka's `NAME://host:port,NAME2://[::1]:port`.

    Raises:
        InvalidSettings: the syntax is wrong, a name comes twice, or a port is out of range.
    """
    found: list[Listener] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        match = _LISTENER.match(item)
        if match is None:
            raise InvalidSettings(f"{what}: {item!r} is not of the form NAME://host:port (IPv6: NAME://[::1]:port)")
        listener = Listener(
            name=match["name"].upper(),
            host=match["v6"] if match["v6"] is not None else match["host"],
            port=int(match["port"]),
        )
        if listener.port > 65535:
            raise InvalidSettings(f"{what}: port {listener.port} is above 65535")
        if any(listener.name == other.name for other in found):
            raise InvalidSettings(f"{what}: the name {listener.name} is given twice")
        found.append(listener)
    return tuple(found)


_OVERRIDE = re.compile(r"^(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:\[\]]+)):(?P<limit>\d+)$")


def parse_overrides(text: str) -> dict[str, int]:
    """Limits by address or host name, from Kafka's `address:limit,address:limit`.

    Raises:
        InvalidSettings: the syntax is wrong.
    """
    found: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        match = _OVERRIDE.match(item)
        if match is None:
            raise InvalidSettings(
                f"max.connections.per.ip.overrides: {item!r} is not of the form address:limit (IPv6: [::1]:limit)"
            )
        found[match["v6"] or match["host"]] = int(match["limit"])
    return found
