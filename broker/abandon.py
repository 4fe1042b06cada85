"""`tidelog wal abandon`: give up a WAL that is lost for good, and record what that costs.

Always true:
- Without `--yes` nothing is changed: it tells what would be.
- A WAL that is still here is refused: the broker recovers it, and nothing is lost.
- What is given up is a recorded gap in each partition that was open on the WAL: offsets from the end of what was uploaded to where
  the partition goes on, past everything that may have been acknowledged (I2). Nothing that was uploaded is touched.
- Of a damaged WAL that was set aside, exactly what is missing is given up: up to the next record that is intact, which the broker recovers
  at its next start. Only where nobody knows how far the loss goes is the gap longer.

That no broker runs on the WAL any more is the operator's word, unless the broker that leads knows better: then it is refused. One that does goes on
acknowledging what nobody will see until it hears of the abandon; so it must be stopped, or its machine gone, first.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.cluster_client import LeaderUnreachable, open_cluster
from broker.config import BrokerSettings
from broker.inspect.bucket import open_bucket, stream_name
from broker.inspect.command import EXIT_CLEAN, EXIT_NOT_CHECKED, add_places, at_least_one, wal_path
from broker.inspect.rows import NoteRow, Row, emit, offsets, plural, ranges_text, size, when
from broker.inspect.wal import open_wal_disk
from broker.inspect.wal_in_bucket import open_wal_objects
from broker.losses import loss_text
from broker.salvage import assess, streams_on
from broker.tool_controller import PATIENCE, open_controller
from broker.uris import absolute_uri
from controller.errors import NodeRefused
from controller.image import Image
from controller.losses import KnownLoss, known_loss, reported_end_offset
from controller.tables import NodeStatus
from s3stream.metadata import StreamId
from s3stream.open import open_object_store
from s3stream.wal_objects import StoreForWal
from wal.aside import AsideWal, file_asides
from wal.config import ObjectWalConfig, parse_wal_uri
from wal.errors import WalError
from wal.header import choose_header
from wal.identity import read_identity
from wal.slot import identity_key
from wal.slot_salvage import slot_asides
from wal.survey import WalSurvey

__all__ = ["abandon", "add_wal"]

DEFAULT_SLACK_OFFSETS: Final = 1_000_000_000
"""Offsets left out in each partition. A lost WAL of 512 MiB held fewer records than that, unless they were compressed to a
byte each; and of 2^63 offsets nobody misses them."""

_DESCRIPTION = """\
Give up a WAL whose disk is lost for good, so that its node can start with an empty one. What was acknowledged and not
uploaded is lost; that is recorded as a gap in the offsets of each partition. Stop the broker first, wherever it runs.
Without --yes it tells what it would do, and does nothing.
"""


class AbandonedRow(Row, frozen=True, kw_only=True):
    """One partition that was open on the WAL."""

    partition: str
    stream_id: int
    committed_end_offset: int
    """Everything below is in objects, and stays."""
    resume_offset: int
    newest_timestamp_ms: int
    """Of what is in objects: what came later is lost."""
    is_exact: bool = False
    """All of these were acknowledged, and are lost: no more, no less."""
    stays: tuple[tuple[int, int], ...] = ()
    """What the WAL holds behind that, and is recovered."""
    reported_end_offset: int = -1
    """Exclusive end of what its node last reported of it, and is in no object; -1: it reported none of this partition, or that is not known."""
    reported_bytes: int = -1
    """Size of these; -1: not known exactly."""

    def text(self) -> str:
        if self.is_exact:
            stays = f"; {ranges_text(self.stays)} stay, and are recovered at the next start" if self.stays else ""
            return f"{self.partition}: offsets {offsets(self.committed_end_offset, self.resume_offset)} are lost, and given up{stays}"
        given_up = (
            f"{self.partition}: offsets {offsets(self.committed_end_offset, self.resume_offset)} are given up, of which"
        )
        stays = f"the newest record that stays is of {when(self.newest_timestamp_ms)}"
        if self.reported_end_offset < 0:
            return f"{given_up} those are lost that were acknowledged and not uploaded; {stays}"
        known = size(self.reported_bytes) if self.reported_bytes >= 0 else "their size is not known exactly"
        return (
            f"{given_up} {offsets(self.committed_end_offset, self.reported_end_offset)} are surely lost ({known}), as the node reported, and those "
            f"that it acknowledged later; {stays}"
        )


class CostRow(Row, frozen=True, kw_only=True):
    """What is known of all that the WAL alone holds."""

    wal_id: str
    node_id: int
    cost: str
    """In words."""
    records: int
    """As its node reported last; -1: no report is known."""
    size_bytes: int
    partitions: int
    oldest_age_ms: int
    """For how long the oldest had waited by then, or longer; -1: not known."""
    before_silence_ms: int
    """How long before its last sign of life; -1: not known."""
    left_records: int
    """Of these, those that are in no object now, so are lost with the WAL; -1: not known."""
    newest_object_at_ms: int
    """When the newest object with records of these partitions was committed; -1: none was."""

    def text(self) -> str:
        objects = (
            f"the newest object with records of these partitions was committed {when(self.newest_object_at_ms)}"
            if self.newest_object_at_ms >= 0
            else "no object holds anything of these partitions"
        )
        return f"{self.cost}. {objects[0].upper()}{objects[1:]}"


def add_wal(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `wal abandon` to the command line."""
    wal = commands.add_parser("wal", help="give up a write-ahead log that is lost")
    kinds = wal.add_subparsers(dest="wal_command", required=True, metavar="action")
    command = kinds.add_parser(
        "abandon", help="give up a lost WAL, and its unuploaded records", description=_DESCRIPTION
    )
    command.add_argument("wal_id", metavar="WAL_ID", help="32 hex digits, as the refusal to start names it")
    add_places(command)
    command.add_argument("--yes", action="store_true", help="do it")
    command.add_argument(
        "--slack-offsets",
        type=at_least_one,
        default=DEFAULT_SLACK_OFFSETS,
        metavar="N",
        help=f"offsets to leave out; more than can have been acknowledged since the last upload (default: {DEFAULT_SLACK_OFFSETS})",
    )


async def abandon(options: argparse.Namespace, settings: BrokerSettings) -> int:
    """Abandon, or tell what that would do; returns the exit status.

    Raises:
        InvalidSettings, ControllerError, StorageError, ObjectStoreError: it cannot be done; the message says why.
    """
    rng = random.Random()
    uri = absolute_uri(settings.object_store_uri)
    await _refuse_what_is_here(wal_path(settings.wal_uri), options.wal_id)
    await _refuse_what_is_in_its_bucket(settings, options.wal_id, rng)
    async with open_bucket(uri, rng) as bucket:
        image = (await bucket.replica()).image
    if not any(stream.wal_id == options.wal_id for stream in image.state.tables.streams.values()):
        raise NodeRefused(f"no partition is open on a WAL {options.wal_id}: there is nothing to abandon")
    plan = await _plan(settings, image, options)
    await emit(_rows(image, plan, options), as_json=options.json)
    if not options.yes:
        return EXIT_NOT_CHECKED
    await _refuse_what_is_in_use(settings, image, options.wal_id, rng)
    async with open_controller(uri, cluster_id=settings.cluster_id, rng=rng) as controller:
        await controller.abandon_wal(
            options.wal_id,
            slack_offsets=options.slack_offsets,
            resume_offsets={stream_id: loss.resume_offset for stream_id, loss in plan.items()},
            kept=[stream_id for stream_id, loss in plan.items() if loss.stays],
        )
    return EXIT_CLEAN


async def _refuse_what_is_here(path: Path | None, wal_id: str) -> None:
    if path is None:
        return
    try:
        async with open_wal_disk(path) as disk:
            found_id = choose_header(await WalSurvey(disk).head()).wal_id
    except WalError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return
        raise NodeRefused(
            f"{error}. If this is the WAL that is to be given up, move {path} away first; the node starts with an empty directory"
        ) from error
    if found_id == wal_id:
        raise NodeRefused(
            f"the WAL {wal_id} is here, in {path}: start the broker, which recovers it. If its recovery fails and the WAL is to be "
            "given up nevertheless, move the directory away first"
        )


async def _refuse_what_is_in_its_bucket(settings: BrokerSettings, wal_id: str, rng: random.Random) -> None:
    config = parse_wal_uri(absolute_uri(settings.wal_uri)) if "://" in settings.wal_uri else None
    if not isinstance(config, ObjectWalConfig):
        return
    key = identity_key(settings.known_node_id)
    opened = open_object_store(config.store_uri, rng=rng, settings=PATIENCE)
    objects = StoreForWal(opened.store, opened.paths.prefix)
    aside = f"delete the object {key} below the prefix of wal.uri first; the node then begins a new WAL"
    try:
        data = await objects.read(key)
        found_id = "" if data is None else read_identity(data, key).wal_id
    except WalError as error:
        raise NodeRefused(f"{error}. If this is the WAL that is to be given up, {aside}") from error
    finally:
        await objects.close()
    if found_id == wal_id:
        raise NodeRefused(
            f"the WAL {wal_id} is in {objects.uri}: start the broker, which recovers it. If its recovery fails and the WAL is to be "
            f"given up nevertheless, {aside}"
        )


async def _refuse_what_is_in_use(settings: BrokerSettings, image: Image, wal_id: str, rng: random.Random) -> None:
    """Refuse the WAL of a broker that lives, as the one that leads knows. Where nobody leads, or it cannot be asked from here, that is the
    operator's to know."""
    for node in image.nodes.values():
        if node.wal_id != wal_id or image.node_status(node.node_id) is NodeStatus.DEAD or not node.controller_address:
            continue
        try:
            async with open_cluster(
                absolute_uri(settings.object_store_uri), cluster_id=settings.cluster_id, rng=rng
            ) as cluster:
                balance = await cluster.balance()
        except LeaderUnreachable:
            return
        if any(other.node_id == node.node_id and other.lives for other in balance.nodes):
            raise NodeRefused(
                f"node {node.node_id} runs, as far as the cluster knows, and acknowledges records with this WAL: stop it first, and wait for some "
                "seconds if it was killed"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loss:
    """What is given up of one partition."""

    resume_offset: int
    is_exact: bool
    stays: tuple[tuple[int, int], ...]


async def _plan(settings: BrokerSettings, image: Image, options: argparse.Namespace) -> dict[StreamId, _Loss]:
    """What of each partition is given up; empty where the WAL is not here, so that nobody knows.

    Raises:
        NodeRefused: the broker has not taken out yet what the WAL still holds.
    """
    path = wal_path(settings.wal_uri)
    if path is not None:
        return await _plan_of(file_asides(path), image, options)
    config = parse_wal_uri(absolute_uri(settings.wal_uri))
    if not isinstance(config, ObjectWalConfig):
        return {}
    rng = random.Random()
    async with open_wal_objects(config, rng, read_only=True) as objects:
        return await _plan_of(await slot_asides(objects, settings.known_node_id, rng), image, options)


async def _plan_of(asides: Sequence[AsideWal], image: Image, options: argparse.Namespace) -> dict[StreamId, _Loss]:
    plan: dict[StreamId, _Loss] = {}
    for aside in asides:
        if aside.wal_id != options.wal_id:
            continue
        ends = streams_on(image, aside.wal_id)
        try:
            assessment = await assess(aside, image)
        except WalError as error:
            await emit(_note(f"nothing can be read of it: {error}"), as_json=options.json)
            continue
        for stream_id, committed_end_offset in ends.items():
            loss = assessment.streams[stream_id]
            if loss.is_complete or loss.end_offset != committed_end_offset:
                raise NodeRefused(
                    f"the WAL in {aside.place} holds records that are intact, and in no object yet: start the broker first, which "
                    "recovers them"
                )
            end = loss.lost[0][1]
            plan[stream_id] = _Loss(
                resume_offset=committed_end_offset + options.slack_offsets if end is None else end,
                is_exact=end is not None,
                stays=tuple(loss.intact),
            )
    return plan


async def _note(message: str) -> AsyncGenerator[Row]:
    yield NoteRow(message=message)


async def _rows(image: Image, plan: Mapping[StreamId, _Loss], options: argparse.Namespace) -> AsyncGenerator[Row]:
    count = 0
    known = known_loss(image.state.tables, options.wal_id)
    for stream in image.state.tables.streams.values():
        if stream.wal_id != options.wal_id:
            continue
        count += 1
        loss = plan.get(stream.stream_id)
        reported = None if known is None or loss is not None else known.streams.get(stream.stream_id)
        yield AbandonedRow(
            partition=stream_name(image, stream.stream_id),
            stream_id=stream.stream_id,
            committed_end_offset=stream.committed_end_offset,
            resume_offset=reported_end_offset(stream, known) + options.slack_offsets
            if loss is None
            else loss.resume_offset,
            is_exact=loss is not None and loss.is_exact,
            stays=() if loss is None else loss.stays,
            newest_timestamp_ms=max((value.max_timestamp_ms for value in stream.ranges), default=-1),
            reported_end_offset=-1 if reported is None else reported.end_offset,
            reported_bytes=-1 if reported is None else reported.size_bytes,
        )
    if known is not None and len(plan) < count:
        yield _cost(image, known)
    if not options.yes:
        yield NoteRow(
            message=f"nothing was done. To give up this WAL ({plural(count, 'partition')}), make sure that no broker runs "
            "on it any more, and say --yes"
        )


def _cost(image: Image, known: KnownLoss) -> CostRow:
    tables = image.state.tables
    held = known.held
    return CostRow(
        wal_id=known.node.wal_id,
        node_id=known.node.node_id,
        cost=loss_text(known),
        records=-1 if held is None else held.record_count,
        size_bytes=-1 if held is None else held.size_bytes,
        partitions=-1 if held is None else held.stream_count,
        oldest_age_ms=-1 if held is None else held.oldest_age_ms,
        before_silence_ms=known.before_silence_ms,
        left_records=-1 if known.record_count is None else known.record_count,
        newest_object_at_ms=max(
            (
                tables.objects[object_id].committed_at_ms
                for stream in tables.streams.values()
                if stream.wal_id == known.node.wal_id
                for object_id in stream.object_ids
            ),
            default=-1,
        ),
    )
