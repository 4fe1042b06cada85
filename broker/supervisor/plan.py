"""What each of several nodes on one machine gets of the settings of all of them. Pure, but for the working directory.

Always true:
- Nodes share the bucket and nothing else: each has an id, addresses, a WAL and a share of the memory of its own.
- The same settings and the same count give the same nodes, so that each finds its WAL again.
- What cannot be divided is refused, all of it in one message, before anything is started.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from broker.addresses import Listener, parse_listeners
from broker.config import ALLOTTED, SETTINGS, BrokerSettings, InvalidSettings
from broker.uris import absolute_uri
from wal.config import FileWalConfig, parse_wal_uri

__all__ = ["MAX_NODES", "settings_of_nodes", "shifted"]

MAX_NODES = 64
"""Of one command: each is a process with at least 64 MiB. More of them share one machine's disk and cores to nobody's good."""

DEFAULT_CONTROLLER_LISTENER = "CONTROLLER://127.0.0.1:0"
"""They all are on this machine, and find each other's ports in the bucket."""

_WILDCARDS = ("", "0.0.0.0", "::")
_LOOPBACK = {"localhost": "127.0.0.1", "::1": "127.0.0.1"}


def settings_of_nodes(settings: BrokerSettings, count: int) -> tuple[BrokerSettings, ...]:
    """The settings of each node, in the order of their ids.

    Ids and ports that are not 0 count up from those of the settings; a WAL on a disk is in a directory of its own below that of
    the settings, and one in a bucket is told apart by the node's id; `memory.bytes` is divided.

    Raises:
        InvalidSettings: names all that makes no sense for so many nodes.
        WalConfigInvalid: `wal.uri` makes none for any.
    """
    problems = list(_problems(settings, count))
    if problems:
        raise InvalidSettings("; ".join(problems))
    controllers = settings.controller_listeners or DEFAULT_CONTROLLER_LISTENER
    found: list[BrokerSettings] = []
    for number in range(count):
        node_id = settings.node_id + number
        try:
            found.append(
                settings.replace(
                    node_id=node_id,
                    listeners=shifted(settings.listeners, number),
                    advertised_listeners=shifted(settings.advertised_listeners, number),
                    controller_listeners=shifted(controllers, number),
                    metrics_listeners=shifted(settings.metrics_listeners, number),
                    object_store_uri=absolute_uri(settings.object_store_uri),
                    wal_uri=_wal_uri(settings.wal_uri, node_id),
                    memory_bytes=settings.memory_bytes // count,
                )
            )
        except InvalidSettings as error:
            raise InvalidSettings(f"node {node_id} of {count}: {error}") from error
    _refuse_clashes(found)
    return tuple(found)


def shifted(listeners: str, by: int) -> str:
    """The same listeners with ports that are so much higher; 0 stays, since it is any free one."""
    return ",".join(
        str(Listener(name=one.name, host=one.host, port=one.port + by if one.port else 0))
        for one in parse_listeners(listeners)
    )


def _problems(settings: BrokerSettings, count: int) -> Iterator[str]:
    if not 1 <= count <= MAX_NODES:
        yield f"--nodes {count} is not allowed: 1 to {MAX_NODES}"
        return
    memory = SETTINGS["memory.bytes"]
    assert memory.least is not None
    if settings.memory_bytes < count * memory.least:
        yield (
            f"memory.bytes = {settings.memory_bytes} is for all nodes together, and too little for {count}: each needs "
            f"{int(memory.least) >> 20} MiB, so at least {count * int(memory.least) >> 20}MiB"
        )
    if urlsplit(settings.object_store_uri).scheme == "mem":
        yield "object.store.uri = mem:// is the memory of one process: several nodes need a bucket or a directory that they share"
    if settings.node_id == ALLOTTED:
        yield "node.id = -1 is for brokers that are started one by one: --nodes gives its nodes ids that count up, so say the first"
        return
    most_id = SETTINGS["node.id"].most
    assert most_id is not None
    if settings.node_id + count - 1 > most_id:
        yield f"node.id = {settings.node_id} is the first of {count}, and leaves no ids for the others: at most {int(most_id) - count + 1}"


def _wal_uri(uri: str, node_id: int) -> str:
    absolute = absolute_uri(uri)
    config = parse_wal_uri(absolute)
    if not isinstance(config, FileWalConfig):
        return absolute
    query = urlsplit(absolute).query
    return (config.path / f"node-{node_id}").as_uri() + (f"?{query}" if query else "")


def _refuse_clashes(nodes: list[BrokerSettings]) -> None:
    """No two sockets are to be bound to one address, and no two are to be told to clients as one."""
    bound = [
        (node.node_id, listener)
        for node in nodes
        for text in (node.listeners, node.controller_listeners, node.metrics_listeners)
        for listener in parse_listeners(text)
    ]
    told = [(node.node_id, listener) for node in nodes for listener in parse_listeners(node.advertised_listeners)]
    for listeners in (bound, told):
        for at, (node_id, listener) in enumerate(listeners):
            for other_id, other in listeners[:at]:
                if _same_address(listener, other):
                    raise InvalidSettings(
                        f"with {len(nodes)} nodes, {listener} of node {node_id} is the address of {other} of node {other_id} as well: "
                        f"the ports of each node are one higher than those of the node before, so leave {len(nodes) - 1} free "
                        "behind each, or give port 0"
                    )


def _same_address(one: Listener, other: Listener) -> bool:
    if one.port != other.port or not one.port:
        return False
    hosts = {_LOOPBACK.get(listener.host, listener.host) for listener in (one, other)}
    return len(hosts) == 1 or any(host in _WILDCARDS for host in hosts)
