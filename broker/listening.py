"""Binding the addresses that listeners name, and what clients are told of them."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Iterable

from broker.addresses import Listener, parse_listeners
from broker.config import BrokerSettings

__all__ = ["advertised_listeners", "bind", "tell_unknown_hosts"]

log = logging.getLogger("tidelog.node")

_NO_IPV6 = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENOPROTOOPT)
"""What a machine without IPv6 says to it. Anything else, such as a port that is taken, is a failure."""


async def bind(loop: asyncio.AbstractEventLoop, listener: Listener) -> list[socket.socket]:
    """Bind every address that a listener's host has, all on the same port. Raises OSError."""
    if listener.host in ("", "::"):
        # One socket takes both families, where the machine has IPv6 at all.
        try:
            return [_bound(socket.AF_INET6, ("::", listener.port), dual_stack=True)]
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
            return [_bound(socket.AF_INET, ("0.0.0.0", listener.port))]
    found = await loop.getaddrinfo(listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    port = listener.port
    try:
        for family, _, _, _, address in dict.fromkeys(sorted(found, key=lambda item: item[0] != socket.AF_INET)):
            try:
                sockets.append(_bound(family, (str(address[0]), port)))
            except OSError as error:
                if error.errno not in _NO_IPV6:
                    raise
                failure = error  # "localhost" names ::1 also on machines without IPv6
            else:
                port = sockets[0].getsockname()[1]
    except BaseException:
        for one in sockets:
            one.close()
        raise
    if not sockets:
        raise failure or OSError(errno.EADDRNOTAVAIL, f"{listener.host} has no address")
    return sockets


def advertised_listeners(settings: BrokerSettings, bound: tuple[Listener, ...]) -> dict[str, Listener]:
    """What clients are told, by listener name. Port 0 in `advertised.listeners` means the bound one."""
    told = {listener.name: listener for listener in parse_listeners(settings.advertised_listeners)}
    result: dict[str, Listener] = {}
    for listener in bound:
        given = told.get(listener.name, listener)
        host = given.host if given.host not in ("", "0.0.0.0", "::") else socket.gethostname()
        result[listener.name] = Listener(name=listener.name, host=host, port=given.port or listener.port)
    return result


async def tell_unknown_hosts(hosts: Iterable[str]) -> None:
    """Warn of names that clients or other brokers are told, and that are not known here. Not refused: they may be known where those are."""
    for host in dict.fromkeys(hosts):
        if host == "localhost" or _is_address(host):
            continue
        try:
            await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            log.warning(
                "others are told a name that is not known here: %(host)s (%(error)s). Who does not know it either finds no way to this broker: "
                "see advertised.listeners",
                {"host": host, "error": error},
            )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _bound(family: int, address: tuple[str, int], *, dual_stack: bool = False) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual_stack else 1)
        one.bind(address)
    except BaseException:
        one.close()
        raise
    return one
