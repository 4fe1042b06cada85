"""`tidelog inspect …`: its command line, and what it opens for each kind."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Final

from broker.config import BrokerSettings, InvalidSettings
from broker.inspect.bucket import Bucket, open_bucket
from broker.inspect.groups import inspect_groups
from broker.inspect.metadata import inspect_metadata
from broker.inspect.objects import inspect_object
from broker.inspect.partitions import NoSuchPartition, inspect_partition
from broker.inspect.rows import DamageRow, NoteRow, Row, emit
from broker.inspect.wal import inspect_wal
from broker.inspect.wal_in_bucket import inspect_wal_in_bucket
from broker.uris import absolute_uri
from controller.errors import ControllerError
from controller.image import Image
from s3stream.metadata import ObjectId
from s3stream.objectstore import NotFound, ObjectStoreError
from wal.config import FileWalConfig, ObjectWalConfig, WalConfig, parse_wal_uri

__all__ = [
    "EXIT_CLEAN",
    "EXIT_FINDINGS",
    "EXIT_NOT_CHECKED",
    "add_inspect",
    "add_places",
    "at_least_one",
    "inspect",
    "wal_path",
]

EXIT_CLEAN: Final = 0
EXIT_FINDINGS: Final = 1
"""Damage was seen."""
EXIT_NOT_CHECKED: Final = 2
"""It could not be looked at, or the command line is wrong."""

_DESCRIPTION = """\
Show what lies in a WAL, in an object, in the metadata log, of a partition or a consumer group. Nothing is written and no lock is taken,
so it may run beside a live broker. Exit status: 0, 1 where damage was seen, 2 where it could not be looked at.
"""

_EPILOG = """\
examples:
  tidelog inspect wal --data ./data                  what `tidelog dev` has in its WAL, and what is not uploaded
  tidelog inspect wal /var/lib/tidelog/wal --frames  every frame
  tidelog inspect object 17 -c broker.toml --batches
  tidelog inspect metadata -c broker.toml --from 100 --to 120
  tidelog inspect partition orders-0 --bucket s3://my-bucket/my-cluster --json
  tidelog inspect group billing -c broker.toml
"""


def add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `inspect` and its kinds to the command line."""
    command = commands.add_parser(
        "inspect",
        help="show what lies in a WAL, an object, the metadata log, a partition or a group (read-only)",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = command.add_subparsers(dest="inspected", required=True, metavar="kind")
    wal = kinds.add_parser("wal", help="headers, streams, un-uploaded ranges, and what the end of the log proves")
    wal.add_argument("path", nargs="?", metavar="DIRECTORY", help="the WAL's directory (default: that of wal.uri)")
    wal.add_argument("--frames", action="store_true", help="list every frame")
    one_object = kinds.add_parser("object", help="footer, index, blocks and states of one data object")
    one_object.add_argument("object", metavar="ID|KEY", help="object id, or its key in the bucket")
    one_object.add_argument("--quick", action="store_true", help="read footer and index only, no blocks")
    one_object.add_argument("--batches", action="store_true", help="list the batches in data blocks")
    one_object.add_argument("--records", action="store_true", help="list their records too, shortened")
    metadata = kinds.add_parser("metadata", help="leader, floor, snapshots, entries, and the state they make")
    metadata.add_argument("--entries", action="store_true", help="list the entries and their records")
    metadata.add_argument("--from", type=int, dest="first_index", metavar="N", help="list entries from this one on")
    metadata.add_argument("--to", type=int, dest="last_index", metavar="N", help="list entries up to this one")
    partition = kinds.add_parser("partition", help="offsets, ranges and their objects, state, WAL tail, configs")
    partition.add_argument("partition", metavar="TOPIC-NUMBER", help="such as orders-0")
    partition.add_argument(
        "--check", action="store_true", help="read all its records, and hold them against their CRCs"
    )
    group = kinds.add_parser("group", help="members, generation, committed offsets and lag of consumer groups")
    group.add_argument("group", nargs="?", metavar="GROUP", help="one group (default: a line for each)")
    for kind in (wal, one_object, metadata, partition, group):
        add_places(kind)


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add what says where bucket and WAL are, and how to print."""
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="the broker's settings, as TOML")
    parser.add_argument("--data", type=Path, metavar="DIRECTORY", help="what `tidelog dev --data` keeps")
    parser.add_argument("--bucket", metavar="URI", help="the object store, over object.store.uri of the settings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides", help="one setting; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def at_least_one(text: str) -> int:
    """For argparse: a number that must be positive."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


async def inspect(options: argparse.Namespace, settings: BrokerSettings) -> int:
    """Print what was asked for; returns the exit status.

    Raises:
        InvalidSettings, WalError, ControllerError, StorageError, ObjectStoreError: it cannot be looked at.
    """
    async with AsyncExitStack() as stack:
        try:
            rows = await _rows(stack, options, settings)
            damaged = await emit(rows, as_json=options.json)
        except NoSuchPartition as error:
            print(f"tidelog: {error}", file=sys.stderr)
            return EXIT_NOT_CHECKED
    return EXIT_FINDINGS if damaged else EXIT_CLEAN


async def _rows(stack: AsyncExitStack, options: argparse.Namespace, settings: BrokerSettings) -> AsyncGenerator[Row]:
    uri = absolute_uri(settings.object_store_uri)
    wal = wal_path(getattr(options, "path", None) or settings.wal_uri)
    if options.inspected == "wal":
        config = None if wal is not None else parse_wal_uri(absolute_uri(settings.wal_uri))
        if wal is None and not isinstance(config, ObjectWalConfig):
            raise InvalidSettings(f"{settings.wal_uri} keeps nothing that could be looked at")
        node_id = settings.node_id if wal is not None else settings.known_node_id
        return _wal_rows(uri, wal or config, node_id=node_id, list_frames=options.frames)
    bucket = await stack.enter_async_context(open_bucket(uri, random.Random()))
    if options.inspected == "metadata":
        listed = options.entries or options.first_index is not None or options.last_index is not None
        return inspect_metadata(bucket, entries=listed, first_index=options.first_index, last_index=options.last_index)
    if options.inspected == "object":
        return _object_rows(bucket, options)
    image = (await bucket.replica()).image
    wal = wal if wal is not None and wal.exists() else None
    if options.inspected == "group":
        return inspect_groups(bucket, options.group, image=image, wal=wal)
    return inspect_partition(bucket, options.partition, image=image, wal=wal, read_blocks=options.check)


async def _wal_rows(
    uri: str, place: Path | WalConfig | None, *, node_id: int, list_frames: bool
) -> AsyncGenerator[Row]:
    image: Image | None = None
    try:
        async with open_bucket(uri, random.Random()) as bucket:
            image = (await bucket.replica()).image
    except (ControllerError, ObjectStoreError) as error:
        yield NoteRow(message=f"without the metadata, partitions and what is not uploaded cannot be told: {error}")
    if image is not None and not image.cluster_id:
        yield NoteRow(message=f"no cluster lives in {uri}: partitions and what is not uploaded cannot be told")
        image = None
    rows = (
        inspect_wal_in_bucket(place, node_id=node_id, image=image, list_frames=list_frames)
        if isinstance(place, ObjectWalConfig)
        else inspect_wal(Path(str(place)), image=image, list_frames=list_frames)
    )
    async with aclosing(rows):  # with the disk
        async for row in rows:
            yield row


async def _object_rows(bucket: Bucket, options: argparse.Namespace) -> AsyncGenerator[Row]:
    named: str = options.object
    object_id = ObjectId(int(named)) if named.isascii() and named.isdigit() else bucket.paths.object_id(named)
    if object_id is None:
        raise NotFound(
            f"{named} is neither an object id nor the key of a data object, such as {bucket.paths.data_prefix}…"
        )
    image: Image | None = None
    try:
        image = (await bucket.replica()).image
    except ControllerError as error:
        yield DamageRow(message=str(error))
    async for row in inspect_object(
        bucket,
        object_id,
        image=image,
        read_blocks=not options.quick,
        batches=options.batches or options.records,
        records=options.records,
    ):
        yield row


def wal_path(uri: str) -> Path | None:
    """The directory that a WAL URI, or a path, names."""
    if "://" not in uri and not uri.startswith("file:"):
        return Path(uri).absolute()
    config = parse_wal_uri(absolute_uri(uri))
    return config.path if isinstance(config, FileWalConfig) else None
