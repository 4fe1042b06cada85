"""Settings are refused whole, with every problem named."""

from __future__ import annotations

import dataclasses

import pytest

from s3stream.config import (
    MIB,
    CollectionSettings,
    CompactionSettings,
    InvalidSettings,
    ObjectStoreSettings,
    ReadSettings,
    StorageSettings,
)


def test_the_defaults_hold_together() -> None:
    settings = StorageSettings()
    assert settings.arena_bytes <= settings.memory_bytes // 2


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(InvalidSettings) as caught:
        StorageSettings(
            arena_bytes=768 * MIB + 1,
            upload_parallelism=0,
            compaction=CompactionSettings(fan_in=1, max_sources=0),
            object_store=ObjectStoreSettings(deadline_ms=1),
        )
    message = str(caught.value)
    for expected in (
        "arena_bytes (805306369) must be at most half of memory_bytes (1073741824)",
        "arena_bytes must be a multiple of 4096",
        "at most four fifths of memory_bytes",
        "upload_parallelism must be positive, is 0",
        "compaction.fan_in must be at least 2",
        "compaction.max_sources must be positive, is 0",
        "object_store.deadline_ms must be at least request_timeout_ms",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("part", "changes", "expected"),
    [
        ("", {"upload_size_bytes": 400 * MIB}, "upload_size_bytes must be at most half of arena_bytes"),
        ("", {"block_size_bytes": 8 * MIB}, "block_size_bytes must be at most read.max_get_size_bytes"),
        ("read", {"memory_bytes": 8 * MIB}, "read.memory_bytes must be at least 4 x max_get_size_bytes"),
        ("read", {"read_ahead_initial_bytes": 16 * MIB}, "read.read_ahead_initial_bytes must be at most"),
        ("read", {"tail_size_bytes": 63}, "read.tail_size_bytes must be at least 64"),
        (
            "object_store",
            {"multipart_part_size_bytes": MIB},
            "object_store.multipart_part_size_bytes must be from 5 MiB",
        ),
        ("object_store", {"retry_max_delay_ms": 1}, "object_store.retry_max_delay_ms must be at least"),
        ("compaction", {"max_sources": 5}, "compaction.max_sources must be at least fan_in"),
        ("compaction", {"max_fan_in": 9}, "compaction.max_fan_in must be at least fan_in"),
        ("compaction", {"stream_object_max_bytes": MIB}, "compaction.stream_object_max_bytes must be at least"),
        ("collection", {"batch_size": 2000}, "collection.batch_size must be at most 1000"),
        ("collection", {"orphan_age_ms": 1000}, "collection.orphan_age_ms must be at least grace_ms"),
    ],
)
def test_one_problem(part: str, changes: dict[str, int], expected: str) -> None:
    defaults = StorageSettings()
    if part:
        changes_of_whole: dict[str, object] = {part: dataclasses.replace(getattr(defaults, part), **changes)}
    else:
        changes_of_whole = dict(changes)
    with pytest.raises(InvalidSettings, match=expected.replace(".", r"\.")):
        dataclasses.replace(defaults, **changes_of_whole)  # type: ignore[arg-type]


def test_parts_can_be_made_small_for_tests() -> None:
    settings = StorageSettings(
        memory_bytes=64 * MIB,
        arena_bytes=16 * MIB,
        upload_size_bytes=4 * MIB,
        read=ReadSettings(memory_bytes=16 * MIB, index_cache_bytes=MIB),
        compaction=CompactionSettings(memory_bytes=4 * MIB),
        collection=CollectionSettings(grace_ms=1, orphan_age_ms=1),
    )
    assert settings.read.memory_bytes == 16 * MIB


def test_readers_leave_connections_to_uploads() -> None:
    with pytest.raises(InvalidSettings, match="or uploads wait for readers"):
        StorageSettings(read=ReadSettings(max_requests=32))
    StorageSettings(read=ReadSettings(max_requests=31))
