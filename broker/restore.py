"""`tidelog restore`: take topics back to what they were at a point of the past, or tell how far back that is possible.

Always true:
- Without `--yes` nothing is changed: it tells what would be, partition by partition.
- With it, exactly what was told is done, or nothing: the controller refuses where the metadata is not any more what the plan was
  made of. What is done is one entry of the metadata log, on top of all others; see `controller/restoration.py`.
- Every object that would be referenced again is looked for in the store before, and the state that would come of it is made and
  checked in full, also through a snapshot.
- It takes the controller's office for that one entry, and deletes nothing: snapshots, which may raise the floor, are brokers' work.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Final

from broker.abandon import DEFAULT_SLACK_OFFSETS
from broker.config import BrokerSettings
from broker.inspect.bucket import Bucket, open_bucket
from broker.inspect.command import EXIT_CLEAN, EXIT_NOT_CHECKED, add_places, at_least_one
from broker.inspect.rows import NoteRow, Row, emit, offsets, plural, ranges_text, when
from broker.node import wall_clock_ms
from broker.tool_controller import open_controller
from broker.uris import absolute_uri
from controller.errors import RestoreRefused
from controller.history import Comparison, History, Point, compare, read_history
from controller.invariants import check_all
from controller.restoration import PartitionChange, RestorePlan, RestoreTopics, plan_restore
from controller.snapshot import capture, digest, encode
from controller.snapshot import restore as read_snapshot
from controller.state import State
from s3stream.metadata import ObjectId

__all__ = ["add_restore", "restore"]

_NAMED: Final = 10
"""Objects that a refusal names."""

_DESCRIPTION = """\
Take topics and their records back to what they were at a point of the past: after a topic was deleted by mistake, or records were. Only
what was uploaded until then can come back. What partitions were sent since is given up, and told beforehand; use --topic to leave other
topics as they are. Stop the brokers in order first: a partition that is open is not restored. Without --yes it tells what it would do,
and does nothing; without a point it tells which ones there are.
"""

_EPILOG = """\
examples:
  tidelog restore -c broker.toml                                       how far back, and what was deleted since
  tidelog restore -c broker.toml --at 2026-03-01T12:00:00Z             what would change
  tidelog restore -c broker.toml --at-index 4711 --topic orders --yes  bring back one topic

exit status: 0 done (or told which points there are), 2 nothing was done
"""


class PointRow(Row, frozen=True, kw_only=True):
    """The point that was asked for."""

    index: int
    at_ms: int
    undone_index: int
    """The first entry that would be undone; -1: there is none."""
    undone_at_ms: int

    def text(self) -> str:
        following = (
            "nothing came after it"
            if self.undone_index < 0
            else f"the first thing to be undone is entry {self.undone_index}, written {when(self.undone_at_ms)}"
        )
        return f"restoring to entry {self.index} of the metadata log, written {when(self.at_ms)}; {following}"


class WindowRow(Row, frozen=True, kw_only=True):
    """Which points there are."""

    first_index: int
    first_at_ms: int
    last_index: int
    last_at_ms: int

    def text(self) -> str:
        return (
            f"can be restored: any point from entry {self.first_index}, written {when(self.first_at_ms)}, to entry {self.last_index}, "
            f"written {when(self.last_at_ms)}, if the objects of then are still there"
        )


class EventRow(Row, frozen=True, kw_only=True):
    """Something within the window that one may want to undo."""

    index: int
    at_ms: int
    event: str

    def text(self) -> str:
        return f"entry {self.index}, {when(self.at_ms)}: {self.event}; to undo it: --at-index {self.index - 1}"


class TopicChangeRow(Row, frozen=True, kw_only=True):
    """What becomes of a topic as a whole."""

    topic: str
    change: str

    def text(self) -> str:
        return f"topic {self.topic} {self.change}"


class PartitionChangeRow(Row, frozen=True, kw_only=True):
    """What becomes of a partition's records. Offsets are [start, end)."""

    partition: str
    stream_id: int
    log_start_offset: int
    end_offset: int
    regained: tuple[tuple[int, int], ...]
    given_up: tuple[tuple[int, int], ...]
    is_deleted: bool

    def text(self) -> str:
        parts = [
            f"{verb} offsets {ranges_text(ranges)}"
            for verb, ranges in (("regains", self.regained), ("gives up", self.given_up))
            if ranges
        ]
        after = "is deleted" if self.is_deleted else f"then is {offsets(self.log_start_offset, self.end_offset)}"
        return f"{self.partition}: {', '.join((*parts, after))}"


class MissingRow(Row, frozen=True, kw_only=True):
    """An object that was referenced then and is gone."""

    object_id: int
    reason: str

    def text(self) -> str:
        return f"object {self.object_id} is missing: {self.reason}"


def add_restore(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `restore` to the command line."""
    command = commands.add_parser(
        "restore",
        help="take topics back to a point of the past",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    point = command.add_mutually_exclusive_group()
    point.add_argument(
        "--at",
        type=moment_ms,
        dest="at_ms",
        metavar="TIME",
        help="the last state not after this time, such as 2026-03-01T12:00:00Z (or +02:00), by the object store's clock",
    )
    point.add_argument("--at-index", type=int, metavar="N", help="the state after entry N of the metadata log")
    command.add_argument(
        "--topic",
        action="append",
        default=[],
        dest="topics",
        metavar="NAME",
        help="restore only this one; repeatable (default: all, and altered settings of brokers)",
    )
    add_places(command)
    command.add_argument("--yes", action="store_true", help="do it")
    command.add_argument(
        "--slack-offsets",
        type=at_least_one,
        default=DEFAULT_SLACK_OFFSETS,
        metavar="N",
        help="offsets to leave out in partitions that were open when they were deleted: more than can have been acknowledged and not "
        f"uploaded by then (default: {DEFAULT_SLACK_OFFSETS})",
    )


def moment_ms(text: str) -> int:
    """For argparse: an ISO 8601 time with its offset from UTC, in ms since the epoch."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a time such as 2026-03-01T12:00:00Z") from error
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text} says no time zone: add Z for UTC, or an offset such as +02:00")
    return int(moment.timestamp() * 1000)


async def restore(options: argparse.Namespace, settings: BrokerSettings) -> int:
    """Restore, or tell what that would do, or what can be; returns the exit status.

    Raises:
        InvalidSettings, ControllerError, StorageError, ObjectStoreError: it cannot be done; the message says why.
    """
    rng = random.Random()
    uri = absolute_uri(settings.object_store_uri)
    async with open_bucket(uri, rng) as bucket:
        history = await read_history(bucket.store, bucket.paths, bucket.log)
        if options.at_ms is None and options.at_index is None:
            await emit(_points(bucket, history), as_json=options.json)
            return EXIT_CLEAN
        point = history.at_index(options.at_index) if options.at_index is not None else history.at_time(options.at_ms)
        found = await compare(bucket.log, history, point.index)
        command = RestoreTopics(
            index=point.index,
            target=found.then.tables,
            last_seen=found.last_seen,
            topics=frozenset(options.topics) or None,
            slack_offsets=options.slack_offsets,
            at_ms=wall_clock_ms(),
        )
        plan = plan_restore(found.now.tables, command)
        lost = await _lost(bucket, plan)
    refusal = _refusal(found.now, command, lost)
    await emit(_rows(history, point, plan, lost, refusal, confirmed=options.yes), as_json=options.json)
    if refusal is not None:
        raise refusal
    if plan.changes_nothing:
        return EXIT_CLEAN
    _rehearse(found, plan)
    if not options.yes:
        return EXIT_NOT_CHECKED
    async with open_controller(uri, cluster_id=settings.cluster_id, rng=rng) as controller:
        await controller.restore_topics(command, expected=plan)
        await emit(_done(controller.applied_index), as_json=options.json)
    return EXIT_CLEAN


async def _lost(bucket: Bucket, plan: RestorePlan) -> list[ObjectId]:
    """Objects that would be referenced and are not in the store, though nobody was to delete them."""
    wanted = {entry.object_id: entry.size_bytes for entry in plan.record.objects}
    if not wanted:
        return []
    async for summary in bucket.store.list(bucket.paths.data_prefix):
        object_id = bucket.paths.object_id(summary.key)
        if object_id is not None and wanted.get(object_id) == summary.size_bytes:
            del wanted[object_id]
    return sorted(wanted.keys() - set(plan.missing))


def _refusal(now: State, command: RestoreTopics, lost: list[ObjectId]) -> RestoreRefused | None:
    try:
        now.handle(command)
    except RestoreRefused as error:
        return error
    if lost:
        named = ", ".join(map(str, lost[:_NAMED])) + (f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else "")
        return RestoreRefused(
            f"{len(lost)} objects that held records then are not in the store, or not as they were: {named}. Bring them back from the "
            "bucket's versions, or restore to another point"
        )
    return None


def _rehearse(found: Comparison, plan: RestorePlan) -> None:
    """Make the state that would be, and check all of it, before it is for everybody.

    Raises:
        InvariantViolated: a defect of ours; nothing was done.
    """
    state = found.now.copy()
    state.check_and_apply(plan.record)
    check_all(state.tables)
    *_, back = read_snapshot(b"".join(encode(capture(state, found.next_index))), where="the state after the restore")
    assert back is not None, "a snapshot ends with its state"
    check_all(back[0].tables)
    assert digest(back[0]) == digest(state), "a restored state survives its snapshot"


async def _points(bucket: Bucket, history: History) -> AsyncGenerator[Row]:
    first, last = history.points[0], history.points[-1]
    yield WindowRow(first_index=first.index, first_at_ms=first.at_ms, last_index=last.index, last_at_ms=last.at_ms)
    if first.index < last.index:
        found = await compare(bucket.log, history, first.index)
        for event in found.events:
            yield EventRow(index=event.index, at_ms=history.at_index(event.index).at_ms, event=event.what)


async def _rows(
    history: History,
    point: Point,
    plan: RestorePlan,
    lost: list[ObjectId],
    refusal: RestoreRefused | None,
    *,
    confirmed: bool,
) -> AsyncGenerator[Row]:
    undone = history.after(point)
    yield PointRow(
        index=point.index,
        at_ms=point.at_ms,
        undone_index=-1 if undone is None else undone.index,
        undone_at_ms=-1 if undone is None else undone.at_ms,
    )
    for names, change in (
        (plan.returned_topics, "comes back"),
        (plan.deleted_topics, "is deleted: it did not exist then"),
        (plan.configured_topics, "gets the configurations of then"),
    ):
        for name in names:
            yield TopicChangeRow(topic=name, change=change)
    if plan.broker_configs_change:
        yield NoteRow(message="altered settings of brokers go back as well")
    for partition in plan.partitions:
        yield _partition_row(partition)
    for object_id in plan.missing:
        yield MissingRow(object_id=object_id, reason="it was expired, and is deleted or about to be")
    for object_id in lost:
        yield MissingRow(object_id=object_id, reason="it is not in the store, or not as it was")
    if plan.changes_nothing:
        yield NoteRow(message="nothing would change: all of it is as it was")
    elif refusal is None and not confirmed:
        yield NoteRow(
            message=f"nothing was done. To change {plural(len(plan.partitions), 'partition')} as told, say --yes"
        )


async def _done(index: int) -> AsyncGenerator[Row]:
    yield NoteRow(message=f"restored, by entry {index} of the metadata log; to undo that: --at-index {index - 1}")


def _partition_row(change: PartitionChange) -> PartitionChangeRow:
    return PartitionChangeRow(
        partition=f"{change.topic}-{change.partition}",
        stream_id=change.stream_id,
        log_start_offset=change.log_start_offset,
        end_offset=change.end_offset,
        regained=change.regained,
        given_up=change.given_up,
        is_deleted=change.is_deleted,
    )
