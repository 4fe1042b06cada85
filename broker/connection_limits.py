"""How many connections there may be, of all clients and of one address.

Always true:
- A connection above a limit is closed before it is served; those that are open stay.
- What is remembered is one number for each address that has a connection.
- Kafka's names and meaning: `max.connections`, `max.connections.per.ip`, `max.connections.per.ip.overrides`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

__all__ = ["ConnectionLimits", "plain_address"]


class ConnectionLimits:
    """Counts the connections of one server."""

    __slots__ = ("_by_address", "_overrides", "count", "most", "most_per_ip")

    def __init__(self, *, most: int, most_per_ip: int) -> None:
        self.most = most
        """May be changed; connections that are open already stay."""
        self.most_per_ip = most_per_ip
        self._overrides: Mapping[str, int] = {}
        self._by_address: dict[str, int] = {}
        self.count = 0
        """Connections that are open."""

    def override(self, limits: Mapping[str, int]) -> None:
        """Other limits for some addresses."""
        self._overrides = {plain_address(address): limit for address, limit in limits.items()}

    def opened(self, address: str) -> str | None:
        """Count a connection; returns the limit that it exceeds, for the log, or None. `closed` is owed either way."""
        self.count += 1
        mine = self._by_address[address] = self._by_address.get(address, 0) + 1
        if self.count > self.most:
            return f"more than max.connections = {self.most}"
        if address in self._overrides:
            if mine > self._overrides[address]:
                return f"more than {self._overrides[address]} from {address} (max.connections.per.ip.overrides)"
        elif mine > self.most_per_ip:
            return f"more than max.connections.per.ip = {self.most_per_ip} from {address}"
        return None

    def closed(self, address: str) -> None:
        """A connection that was counted has ended."""
        self.count -= 1
        left = self._by_address[address] - 1
        if left:
            self._by_address[address] = left
        else:
            del self._by_address[address]


def plain_address(text: str) -> str:
    """One spelling for each address: an IPv4 client of an IPv6 socket is that IPv4 address."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
