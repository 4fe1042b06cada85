"""Decides which objects to merge and what to make of them. Pure: metadata in, plan out.

Every upload adds a range to each stream it holds. Merged size-tiered, a stream of n uploads of similar size lies in
about f · log(n) / log(f) ranges, and each byte is rewritten about log(n) / log(f) times, where f is how many are merged at once. A range
of a few MiB is read as cheaply as any, and the store can copy it: so f is what it takes to get there in the fewest steps (`growth`),
and `fan_in` from there on.

Always true:
- Neighbours are merged only if the result is nearly f times as large as the largest of them; so a range that is
  rewritten grows by that factor, and the number of rewrites is logarithmic.
- A planned range stands for whole, neighbouring ranges of its sources (I5). A stream whose ranges in the sources are not
  neighbours gets several planned ranges, in different objects.
- Everything live in the sources is planned; the newest state of a stream goes along; deleted streams do not.
- Streams are split into objects by the bits of their ids. So later plans meet the same groups of streams again,
  which become fewer and larger until a stream has an object of its own. One that is made of what the store can copy has its own at once:
  nothing but copies comes before its end then, so none has to be filled up to a part that S3 takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

from s3stream.config import CompactionSettings
from s3stream.metadata import NewObject, ObjectId, StreamId, StreamRange
from s3stream.objectstore import LEAST_COPY_BYTES

__all__ = [
    "CompactionPlan",
    "PlannedObject",
    "PlannedRange",
    "choose_sources",
    "choosing",
    "find_window",
    "growth",
    "is_large",
    "plan_outputs",
    "rewrites",
]

_ENOUGH_BYTES = 6 << 20
"""A range of this size need not be rewritten again. A little more than S3 copies at least, since streams are not quite alike."""
_GOOD_BYTES = 16 << 20
"""A range of this size costs few requests to copy. Worth a wider merge, not another one."""
_MOST_COPIES = 48
"""Ranges of this size that wait for each other at most: a reader asks for the index of each."""
_LEAST_GROWTH_SHARE = 0.8
"""Of the growth that is wanted. Less than all of it, so that sizes need not be quite equal."""
_LEAST_GARBAGE_SHARE = 0.5
"""An object is rewritten by itself when at least this share of it is dead …"""
_LEAST_GARBAGE_BYTES = 1 << 20
"""… and it is at least this much."""
_SMALL_OBJECT_SHARE = 4
"""Objects below this fraction of the target size are merged for their own number, whatever streams they hold: as many as can be at once …"""
_ALONE_SHARE = 2
"""A range of which the store can copy this part of an object's target size, or more, gets an object of its own."""
_TINY_OBJECT_BYTES = 1 << 20
"""… or, below this size, `fan_in` of them: they cost as little as what they are made of."""

_PAUSE_RANGES = 1000
"""Ranges looked at between two pauses: about a millisecond."""

_Ranges = dict[StreamId, list[tuple[ObjectId, StreamRange]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRange:
    """A range to be made of neighbouring ones."""

    stream_id: StreamId
    pieces: tuple[tuple[ObjectId, StreamRange], ...]
    """In offset order, without gaps."""
    needed_offset: int
    """Blocks that end at or below it (the log start offset) are left out."""
    state_source: ObjectId | None
    """The piece whose state block goes along: the stream's newest."""

    @property
    def size_bytes(self) -> int:
        """Upper bound of the data."""
        return sum(piece.size_bytes for _, piece in self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedObject:
    """An object to be written."""

    ranges: tuple[PlannedRange, ...]
    """Sorted by stream, one a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionPlan:
    """One job. Each output stands for itself: it can be committed without the others."""

    sources: tuple[ObjectId, ...]
    outputs: tuple[PlannedObject, ...]


def choose_sources(
    objects: Sequence[NewObject],
    settings: CompactionSettings,
    *,
    excluded: Collection[ObjectId] = (),
    whole: Collection[ObjectId] = (),
) -> tuple[NewObject, ...]:
    """Choose in one go; see `choosing`."""
    steps = choosing(objects, settings, excluded=excluded, whole=whole)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            chosen: tuple[NewObject, ...] = stop.value
            return chosen


def choosing(
    objects: Sequence[NewObject],
    settings: CompactionSettings,
    *,
    excluded: Collection[ObjectId] = (),
    whole: Collection[ObjectId] = (),
) -> Generator[None, None, tuple[NewObject, ...]]:
    """Objects worth merging now, by id; empty where all is well. Yields now and then, so that others can run.

    Args:
        objects: every referenced object, with its live ranges only.
        excluded: objects that must be left alone (damaged ones).
        whole: objects known to hold next to nothing dead, large as their states and indexes may be.
    """
    usable = {each.object_id: each for each in objects if each.object_id not in excluded}
    by_stream = _by_stream(usable.values())
    settings = replace(settings, max_fan_in=_widest(len(by_stream), settings))
    yield
    window = yield from _longest_window(by_stream, settings)
    yield
    chosen: Collection[ObjectId]
    if window:
        chosen = _with_what_lies_between(window, usable, by_stream, settings)
    else:
        chosen = _small_objects(usable, settings) or _garbage(usable, whole)
    return tuple(usable[object_id] for object_id in sorted(chosen))


def plan_outputs(
    sources: Sequence[NewObject],
    *,
    log_start_offset_of: Callable[[StreamId], int | None],
    newest_state_of: Callable[[StreamId], ObjectId | None],
    settings: CompactionSettings,
) -> CompactionPlan:
    """What to make of some objects.

    Args:
        log_start_offset_of: None for a stream that was deleted.
        newest_state_of: which object holds a stream's newest state.
    """
    source_ids = tuple(each.object_id for each in sources)
    layers: list[list[PlannedRange]] = []
    for stream_id, pieces in sorted(_by_stream(sources).items()):
        needed_offset = log_start_offset_of(stream_id)
        if needed_offset is None:
            continue
        newest_state = newest_state_of(stream_id)
        for number, run in enumerate(_neighbours(pieces)):
            held = [object_id for object_id, _ in run if object_id == newest_state]
            planned = PlannedRange(
                stream_id=stream_id,
                pieces=tuple(run),
                needed_offset=needed_offset,
                state_source=held[0] if held else None,
            )
            if number == len(layers):
                layers.append([])
            layers[number].append(planned)
    outputs = [PlannedObject(ranges=tuple(group)) for layer in layers for group in _groups(layer, settings)]
    return CompactionPlan(sources=source_ids, outputs=tuple(outputs))


def _widest(stream_count: int, settings: CompactionSettings) -> int:
    """How many ranges of each stream may wait for each other."""
    share = settings.max_waiting_ranges // max(1, stream_count)
    return max(settings.fan_in, min(settings.max_fan_in, settings.max_sources, share))


def growth(size_bytes: int, settings: CompactionSettings) -> float:
    """How many times larger than `size_bytes` a merged range must be at least: large enough after the fewest rewrites, and no sooner
    merged than these need."""
    if is_large(size_bytes):
        # In one go to where nothing is merged any more, if it is not too far: each step copies all of it once more.
        at_once = min(settings.stream_object_max_bytes / size_bytes, settings.max_fan_in / 2, _MOST_COPIES)
        return max(settings.fan_in * _LEAST_GROWTH_SHARE, at_once)
    most = settings.max_fan_in
    wanted: float = (_GOOD_BYTES / size_bytes) ** (1 / rewrites(size_bytes, settings))
    wanted = min(most, max(settings.fan_in, wanted))
    enough = _ENOUGH_BYTES / size_bytes
    return max(
        wanted * _LEAST_GROWTH_SHARE, enough if enough <= wanted else 0
    )  # nearly enough would be rewritten again


def rewrites(size_bytes: int, settings: CompactionSettings) -> int:
    """How often a range is written anew, at least, until the store can copy it."""
    if is_large(size_bytes):
        return 0
    return math.ceil(math.log(_ENOUGH_BYTES / size_bytes) / math.log(settings.max_fan_in))


def is_large(size_bytes: int) -> bool:
    """Whether a range is never written anew."""
    return size_bytes >= _ENOUGH_BYTES


def find_window(
    sizes: Sequence[int], *, fan_in: int, max_length: int, growth_of: Callable[[int], float] | None = None
) -> tuple[int, int] | None:
    """The longest row of neighbours [first, last) worth merging: at least `fan_in`, none of which dominates.

    Args:
        sizes: of the neighbours, at least 1.
        growth_of: how many times larger than its largest one a row must be; nearly `fan_in` where it is None, and for rows that cannot be
            longer.
    """
    count = len(sizes)
    sums = [0, *accumulate(sizes)]
    # For each size, the widest row in which it is the largest: from behind the last larger one to the next larger one.
    begins, ends = [0] * count, [count] * count
    rising: list[int] = []
    for number, size in enumerate(sizes):
        while rising and sizes[rising[-1]] < size:
            ends[rising.pop()] = number
        begins[number] = rising[-1] + 1 if rising and sizes[rising[-1]] > size else begins[rising[-1]] if rising else 0
        rising.append(number)
    best: tuple[int, int] | None = None
    refused = (0, 0, 0)
    for number, size in enumerate(sizes):
        first, last = begins[number], ends[number]
        if last - first > max_length:
            first = max(first, min(number - max_length // 2, last - max_length))
            last = first + max_length
        if last - first < fan_in or (best is not None and last - first <= best[1] - best[0]):
            continue
        if (first, last, size) == refused:
            continue  # sizes are alike: it was looked at
        is_full = last - first == max_length
        least = fan_in * _LEAST_GROWTH_SHARE if growth_of is None or is_full else growth_of(size)
        if size * least <= sums[last] - sums[first]:
            best = first, last
        else:
            refused = first, last, size
    return best


def _by_stream(objects: Iterable[NewObject]) -> _Ranges:
    by_stream: _Ranges = {}
    for each in objects:
        for value in each.ranges:
            by_stream.setdefault(value.stream_id, []).append((each.object_id, value))
    for ranges in by_stream.values():
        ranges.sort(key=_offsets)
    return by_stream


def _offsets(located: tuple[ObjectId, StreamRange]) -> tuple[int, int]:
    return located[1].base_offset, located[1].end_offset  # a range without offsets comes before what begins at it


def _neighbours(ranges: Sequence[tuple[ObjectId, StreamRange]]) -> Iterator[list[tuple[ObjectId, StreamRange]]]:
    """Split a stream's ranges where one does not begin at the end of the one before."""
    run: list[tuple[ObjectId, StreamRange]] = []
    for located in ranges:
        if run and run[-1][1].end_offset != located[1].base_offset:
            yield run
            run = []
        run.append(located)
    if run:
        yield run


def _longest_window(by_stream: _Ranges, settings: CompactionSettings) -> Generator[None, None, list[ObjectId]]:
    """Of all streams' windows, the one that joins most ranges."""
    best: list[ObjectId] = []
    looked_at = 0
    for _, ranges in sorted(by_stream.items()):
        if len(ranges) < max(settings.fan_in, len(best) + 1):
            continue
        for run in _mergeable(ranges, settings):
            found = find_window(
                [max(1, value.size_bytes) for _, value in run],
                fan_in=settings.fan_in,
                max_length=settings.max_sources,
                growth_of=partial(growth, settings=settings),
            )
            if found and found[1] - found[0] > len(best):
                best = [object_id for object_id, _ in run[found[0] : found[1]]]
        looked_at += len(ranges)
        if looked_at >= _PAUSE_RANGES:
            looked_at = 0
            yield
    return best


def _mergeable(
    ranges: Sequence[tuple[ObjectId, StreamRange]], settings: CompactionSettings
) -> Iterator[list[tuple[ObjectId, StreamRange]]]:
    """Runs of neighbours without those that are large enough already. What came after the last one that can be copied is still gathering:
    it is not drawn into the merge of those before it."""
    for run in _neighbours(ranges):
        part: list[tuple[ObjectId, StreamRange]] = []
        gathering = 0
        for located in run:
            if located[1].size_bytes >= settings.stream_object_max_bytes:
                yield part
                part, gathering = [], 0
                continue
            part.append(located)
            if located[1].size_bytes >= LEAST_COPY_BYTES:
                gathering = len(part)
        yield part[:gathering]
        yield part[gathering:]


def _with_what_lies_between(
    window: Sequence[ObjectId],
    usable: Mapping[ObjectId, NewObject],
    by_stream: _Ranges,
    settings: CompactionSettings,
) -> set[ObjectId]:
    """Add objects that hold what lies between ranges of the window's other streams, so that those merge as well."""
    chosen = set[ObjectId]()
    total = 0
    for object_id in window:
        if len(chosen) >= settings.fan_in and total + usable[object_id].size_bytes > settings.max_source_bytes:
            break
        chosen.add(object_id)
        total += usable[object_id].size_bytes
    fresh: list[ObjectId] = sorted(chosen)
    while fresh:
        between: set[ObjectId] = set()
        for stream_id in {value.stream_id for object_id in fresh for value in usable[object_id].ranges}:
            ranges = by_stream[stream_id]
            inside = [number for number, (object_id, _) in enumerate(ranges) if object_id in chosen]
            if inside[-1] - inside[0] + 1 == len(inside):
                continue
            between.update(
                object_id
                for object_id, value in ranges[inside[0] : inside[-1]]
                if object_id not in chosen and value.size_bytes < settings.stream_object_max_bytes
            )
        fresh = []
        for object_id in sorted(between):
            size = usable[object_id].size_bytes
            if len(chosen) >= settings.max_sources or total + size > settings.max_source_bytes:
                return chosen
            chosen.add(object_id)
            fresh.append(object_id)
            total += size
    return chosen


def _small_objects(usable: Mapping[ObjectId, NewObject], settings: CompactionSettings) -> list[ObjectId]:
    limit = settings.object_size_bytes // _SMALL_OBJECT_SHARE
    small = [each for _, each in sorted(usable.items()) if each.size_bytes < limit]
    found = find_window(
        [each.size_bytes for each in small],
        fan_in=settings.fan_in,
        max_length=settings.max_sources,
        growth_of=lambda size: (
            _LEAST_GROWTH_SHARE * (settings.fan_in if size < _TINY_OBJECT_BYTES else settings.max_fan_in)
        ),
    )
    if found is None:
        return []
    chosen = small[found[0] : found[1]]
    # Each of a stream's ranges that are no neighbours goes to an object of its own: then little or nothing is gained.
    layers = max(sum(1 for _ in _neighbours(ranges)) for ranges in _by_stream(chosen).values())
    return [each.object_id for each in chosen] if 2 * layers <= len(chosen) else []


def _garbage(usable: Mapping[ObjectId, NewObject], whole: Collection[ObjectId]) -> list[ObjectId]:
    worst: ObjectId | None = None
    most = 0
    for object_id, each in usable.items():
        dead_bytes = each.size_bytes - sum(value.size_bytes for value in each.ranges)
        least = max(_LEAST_GARBAGE_BYTES, each.size_bytes * _LEAST_GARBAGE_SHARE)
        if dead_bytes >= least and dead_bytes > most and object_id not in whole:
            worst, most = object_id, dead_bytes
    return [] if worst is None else [worst]


def _groups(ranges: Sequence[PlannedRange], settings: CompactionSettings) -> list[list[PlannedRange]]:
    """Divide a layer into objects, in the order of their streams: sources are read front to back."""
    alone = [[planned] for planned in ranges if _is_copied(planned, settings)]
    shared = [planned for planned in ranges if not _is_copied(planned, settings)]
    groups = [*alone, *_split(shared, 63, settings.object_size_bytes)] if shared else alone
    return sorted(groups, key=lambda group: group[0].stream_id)


def _is_copied(planned: PlannedRange, settings: CompactionSettings) -> bool:
    """Whether a range is worth an object of its own, most of which the store copies."""
    copied_bytes = sum(piece.size_bytes for _, piece in planned.pieces if piece.size_bytes >= LEAST_COPY_BYTES)
    return copied_bytes >= settings.object_size_bytes // _ALONE_SHARE


def _split(ranges: list[PlannedRange], bit: int, object_size_bytes: int) -> Iterator[list[PlannedRange]]:
    """Halve by the highest bit in which stream ids differ until a group fits, or is one stream."""
    if len(ranges) == 1 or sum(planned.size_bytes for planned in ranges) <= object_size_bytes:
        yield ranges
        return
    while True:
        bit -= 1
        halves = [planned for planned in ranges if not planned.stream_id >> bit & 1]
        if 0 < len(halves) < len(ranges):
            break
    yield from _split(halves, bit, object_size_bytes)
    yield from _split([planned for planned in ranges if planned.stream_id >> bit & 1], bit, object_size_bytes)
