"""What a node process and its supervisor tell each other, over a socket that the one inherits from the other.

The node says once, as a line of JSON, that it serves, and where. The supervisor says once, by a byte or by its end, that all nodes
stop now: then there is nobody to hand partitions over to. A node that shall stop alone gets SIGTERM, and hands over first.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

import msgspec

from broker.node import Node

__all__ = ["STOP", "NodeLink", "Serving"]

STOP: Final = b"s"


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """A node serves."""

    listeners: tuple[str, ...]
    """As bound, ports filled in."""
    metrics_listeners: tuple[str, ...]
    """Likewise."""
    controller_address: str
    """`host:port`, as other nodes are told."""
    bootstrap_servers: str
    """`host:port` for clients."""
    wal_uri: str
    object_store_uri: str


class NodeLink:
    """The end of the link that the node has."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, file_descriptor: int) -> NodeLink:
        """Take the link that was inherited."""
        return cls(*await asyncio.open_unix_connection(sock=socket.socket(fileno=file_descriptor)))

    async def until_all_stop(self) -> None:
        """Return when the supervisor wants all nodes to stop, or is gone."""
        try:
            await self._reader.read(1)
        except ConnectionError:
            return  # it was killed

    def serving(self, node: Node) -> None:
        """Tell that the node serves."""
        said = Serving(
            listeners=tuple(map(str, node.listeners)),
            metrics_listeners=tuple(map(str, node.metrics_listeners)),
            controller_address=node.running.broker.controller.address,
            bootstrap_servers=node.bootstrap_servers,
            wal_uri=node.wal_uri,
            object_store_uri=node.object_store_uri,
        )
        if not self._writer.is_closing():  # the supervisor was killed: it stops at once
            self._writer.write(msgspec.json.encode(said) + b"\n")

    async def close(self) -> None:
        """End it."""
        self._writer.close()
