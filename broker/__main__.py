"""The command line: `tidelog serve -c FILE`, `tidelog dev`, both with `--nodes N`, and tools that look at what they keep."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import random
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from broker.abandon import abandon, add_wal
from broker.balance import add_balance, balance
from broker.config import BrokerSettings, InvalidSettings, settings_from
from broker.config_reference import as_json, as_text
from broker.drain import add_drain, drain
from broker.file_limit import connections_that_fit
from broker.inspect.command import EXIT_NOT_CHECKED, add_inspect, inspect
from broker.logs import LEVELS, configured
from broker.node import Node
from broker.origin import ForeignPackage, check_packages
from broker.restore import add_restore, restore
from broker.supervisor.link import NodeLink
from broker.supervisor.plan import settings_of_nodes
from broker.supervisor.supervisor import supervise
from broker.verify.command import add_verify, verify
from controller.errors import ControllerError, NodeIdTaken
from s3stream.config import InvalidSettings as InvalidStorageSettings
from s3stream.errors import StorageError, TakenForDead
from s3stream.objectstore import ObjectStoreError
from wal.errors import WalError, WalFencedByRecoverer

__all__ = ["main"]

T = TypeVar("T")

GC_THRESHOLDS = (50_000, 50, 100)
"""Collections are rare: messages are not tracked, connections break their cycles, and a full collection stops the loop."""

DEV_METRICS_PORT = 9404
"""Where exporters of Kafka's metrics have been by custom (the JMX exporter's examples, and its place in Prometheus's list of ports)."""

_CANNOT_START = (
    InvalidSettings,
    InvalidStorageSettings,
    ForeignPackage,
    WalError,
    ControllerError,
    StorageError,
    ObjectStoreError,
)
"""What is wrong outside of this program: the message says what to do, a traceback would not help."""

_STARTS_AGAIN = (NodeIdTaken, TakenForDead, WalFencedByRecoverer)
"""What a start may end with that was overtaken by others, since it took long: the next one finds them done."""

_DESCRIPTION = """\
Tidelog: a Kafka-compatible broker whose log lives in object storage.

A produce is acknowledged when it is durable in the local write-ahead log; every few seconds its content is
written to the object store as large objects. Any Kafka client works.
"""

_EPILOG = """\
settings have Kafka's names where Kafka has one. Later sources win: defaults, the file given with -c (TOML),
environment variables such as TIDELOG_NUM_PARTITIONS=3, then --set num.partitions=3. `tidelog config` lists all.

examples:
  tidelog dev                             serve on localhost:9092, everything under ./data
  tidelog serve -c broker.toml            serve as the file says
  tidelog dev --nodes 3                   serve on three nodes, from localhost:9092 on
  tidelog inspect wal --data ./data       show what is in the WAL (see also: inspect --help)
  tidelog verify --data ./data            check everything in the bucket
  tidelog drain 3 -c broker.toml          have broker 3 give all its partitions to the others
  tidelog balance --dry-run -c broker.toml  tell what would move to make brokers even
  tidelog serve --set listeners=PLAINTEXT://0.0.0.0:9092 --set advertised.listeners=PLAINTEXT://kafka1:9092
"""


_TOOLS = {"balance": balance, "drain": drain, "inspect": inspect, "restore": restore, "verify": verify, "wal": abandon}
"""Commands that look at what brokers keep; see each for its exit status."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        check_packages()
        if options.command == "config":
            print(as_json() if options.json else as_text())
            return 0
        settings = _settings(options)
        link: int | None = getattr(options, "link", None)
        node_id = None if link is None else settings.node_id
        with configured(settings.logging_format, settings.logging_level, node_id=node_id):
            tool = _TOOLS.get(options.command)
            if tool is not None:
                return _run(tool(options, settings))
            if options.nodes is None:
                return _run(_serve(settings, link))
            return asyncio.run(supervise(settings_of_nodes(settings, options.nodes), rng=random.Random()))
    except KeyboardInterrupt:  # of a tool; a broker has handlers of its own, once it runs
        return 128 + signal.SIGINT
    except _CANNOT_START as error:
        who = "" if getattr(options, "link", None) is None else f"node {settings.node_id}: "
        print(f"tidelog: {who}{error}", file=sys.stderr)
        return 1 if options.command in ("serve", "dev") else EXIT_NOT_CHECKED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tidelog", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    serve = commands.add_parser("serve", help="run a broker as a settings file says")
    serve.add_argument("-c", "--config", type=Path, metavar="FILE", help="settings, as TOML")
    dev = commands.add_parser("dev", help="run a broker for development: localhost, data under one directory")
    dev.add_argument("--data", type=Path, default=Path("data"), help="directory for WAL and objects (default: ./data)")
    dev.add_argument("--port", type=int, default=9092, help="port on localhost; 0 takes any free one (default: 9092)")
    config = commands.add_parser("config", help="list every setting with type, default, unit and meaning")
    config.add_argument("--json", action="store_true", help="as an array of objects, for programs")
    add_balance(commands)
    add_drain(commands)
    add_inspect(commands)
    add_verify(commands)
    add_wal(commands)
    add_restore(commands)
    serve.add_argument("--link", type=int, help=argparse.SUPPRESS)  # to the process that runs several nodes
    for command in (serve, dev):
        command.add_argument(
            "--nodes",
            type=int,
            metavar="N",
            help="run so many nodes on this machine, each in a process of its own, with ids and ports that count up, "
            "and start those again that end",
        )
        command.add_argument(
            "--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides", help="one setting; repeatable"
        )
    parser.add_argument(
        "--log-level", choices=LEVELS, help="what goes to standard error (default: the setting logging.level)"
    )
    return parser


def _settings(options: argparse.Namespace) -> BrokerSettings:
    overrides: dict[str, str] = {}
    file: Path | None = None
    if options.command == "dev":
        overrides["listeners"] = f"PLAINTEXT://localhost:{options.port}"
        # Whoever asks for any free port wants several brokers side by side.
        overrides["metrics.listeners"] = f"HTTP://localhost:{DEV_METRICS_PORT if options.port else 0}"
    else:
        file = options.config
    if getattr(options, "data", None) is not None:
        data = options.data.absolute()
        overrides["wal.uri"] = f"{(data / 'wal').as_uri()}?capacity=512MiB"
        overrides["object.store.uri"] = (data / "objects").as_uri()
    if getattr(options, "bucket", None) is not None:
        overrides["object.store.uri"] = options.bucket
    if options.log_level is not None:
        overrides["logging.level"] = options.log_level
    for item in options.overrides:
        name, separator, value = item.partition("=")
        if not separator:
            raise InvalidSettings(f"--set {item}: NAME=VALUE is expected")
        overrides[name.strip()] = value.strip()
    return settings_from(file=file, overrides=overrides)


def _run(coroutine: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:  # not built for this platform: slower, nothing else
        return asyncio.run(coroutine)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


async def _serve(settings: BrokerSettings, file_descriptor: int | None) -> int:
    """Serve until a signal, or the supervisor at the other end of a link, says stop; or until the broker cannot acknowledge any more. One that
    others took for dead, since it stood still, comes back by itself."""
    loop = asyncio.get_running_loop()
    settings = settings.replace(max_connections=connections_that_fit(settings.max_connections))
    gc.set_threshold(*GC_THRESHOLDS)  # for recovery, too
    node = Node(settings, lookout=True)
    link = None if file_descriptor is None else await NodeLink.open(file_descriptor)
    stop = asyncio.Event()

    def stop_in_order() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)  # a second one ends the process at once: the WAL keeps the rest
        stop.set()

    async def stop_with_all(link: NodeLink) -> None:
        await link.until_all_stop()
        node.hands_over = False
        stop_in_order()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_in_order)
    async with contextlib.AsyncExitStack() as stack:
        stopped = _begun(stack, stop.wait())
        if link is not None:
            stack.push_async_callback(link.close)
            _begun(stack, stop_with_all(link))
        while True:
            async with contextlib.AsyncExitStack() as life:
                starting = _begun(life, life.enter_async_context(node))
                await asyncio.wait((stopped, starting), return_when=asyncio.FIRST_COMPLETED)
                if not starting.done():
                    return 0  # nobody was served yet
                if link is None and isinstance(error := starting.exception(), _STARTS_AGAIN):
                    print(f"tidelog: starting again: {error}", file=sys.stderr, flush=True)
                    continue
                starting.result()
                if link is None:
                    _announce(node)
                else:
                    link.serving(node)
                gc.collect()
                gc.freeze()
                failed = _begun(life, node.wait_failed())
                await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
                if not failed.done():
                    if link is None:
                        print("tidelog: uploading and closing", flush=True)
                    break
                error = failed.result()
                comes_back = isinstance(error, WalFencedByRecoverer) or await node.is_taken_for_dead()
                if link is not None or not comes_back:  # a supervisor starts it again
                    stop_in_order()
                    print(f"tidelog: stopping: {error}", file=sys.stderr)
                    return 1
                print(f"tidelog: starting again: {error}", file=sys.stderr, flush=True)
            gc.unfreeze()
    if link is None:
        with contextlib.suppress(BrokenPipeError):
            print("tidelog: stopped", flush=True)
    return 0


def _begun(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task that is cancelled and awaited at the end of the stack."""

    async def end() -> None:
        task.cancel()
        await asyncio.wait((task,))

    task = asyncio.create_task(work)
    stack.push_async_callback(end)
    return task


def _announce(node: Node) -> None:
    servers = node.bootstrap_servers
    metrics = ", ".join(f"http://{str(one).partition('://')[2]}/metrics" for one in node.metrics_listeners) or "none"
    print(
        f"""\
Tidelog serves Kafka on {", ".join(map(str, node.listeners))}
  write-ahead log  {node.wal_uri}
  object store     {node.object_store_uri}
  metrics          {metrics}
try:
  echo hello | kcat -b {servers} -t test -P
  kcat -b {servers} -t test -C -o beginning -e
  kcat -b {servers} -L""",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
