"""Snapshots of the metadata: they bound the log and the start, and leave what a restore may want."""

from __future__ import annotations

import asyncio

import pytest

from controller.errors import MetadataCorrupt
from controller.image import Applied
from controller.snapshot import digest
from tests.controller.world import PATHS, World, run, upload, with_topic


def test_snapshots_bound_the_log_and_the_start() -> None:
    async def scenario(world: World) -> None:
        settings = {"snapshot_interval_entries": 20, "retained_entries": 5}
        controller = await world.start(**settings)
        metadata, (stream,) = await with_topic(controller)
        for base in range(0, 2_000, 10):
            await upload(metadata, stream, base, base + 10)
            await asyncio.sleep(0.01)
        keys = world.bucket.keys
        assert len([key for key in keys if key.startswith(PATHS.log_prefix)]) < 30
        assert len([key for key in keys if key.startswith(PATHS.snapshot_prefix)]) <= 2
        again = await world.start(**settings)
        assert world.stores[1].requests["get"] < 40
        assert digest(again.image.state) == digest(controller.image.state)

    run(scenario)


def test_entries_stay_for_as_long_as_a_restore_may_want_them() -> None:
    async def scenario(world: World) -> None:
        settings = {"snapshot_interval_entries": 20, "retained_entries": 5, "restore_window_ms": 60_000}
        controller = await world.start(**settings)
        world.stores[0]._now_ms = lambda: int(asyncio.get_running_loop().time() * 1_000)
        metadata, (stream,) = await with_topic(controller)
        for base in range(0, 2_000, 10):
            await upload(metadata, stream, base, base + 10)
            await asyncio.sleep(1)
        first, *_ = [index for key in world.bucket.keys if (index := PATHS.log_index(key)) is not None]
        snapshots = [index for key in world.bucket.keys if (index := PATHS.snapshot_index(key)) is not None]
        written_ms = [world.bucket.objects[PATHS.snapshot(index)].modified_ms for index in snapshots]
        now_ms = asyncio.get_running_loop().time() * 1_000
        assert written_ms[0] <= now_ms - 60_000 < written_ms[1], "no more snapshots than needed"
        assert first == snapshots[0] + 1, "the log goes on behind the oldest one"
        again = await world.start(**settings)
        assert world.stores[1].requests["get"] < 40, "a start reads the newest one"
        assert digest(again.image.state) == digest(controller.image.state)

    run(scenario)


def test_a_follower_that_fell_behind_the_floor_loads_the_snapshot() -> None:
    async def scenario(world: World) -> None:
        follower = await world.start()
        heard: list[Applied] = []
        follower.subscribe(heard.append)
        controller = await world.start(snapshot_interval_entries=10, retained_entries=2)
        metadata, (stream,) = await with_topic(controller)
        for base in range(0, 500, 10):
            await upload(metadata, stream, base, base + 10)
            await asyncio.sleep(0.01)
        await follower.refresh()
        assert [applied.is_reset for applied in heard][:1] == [True]
        assert digest(follower.image.state) == digest(controller.image.state)

    run(scenario)


def test_a_missing_snapshot_is_told() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start(snapshot_interval_entries=5, retained_entries=0)
        metadata, (stream,) = await with_topic(controller)
        for base in range(0, 100, 10):
            await upload(metadata, stream, base, base + 10)
            await asyncio.sleep(0.01)
        world.bucket.delete([key for key in world.bucket.keys if key.startswith(PATHS.snapshot_prefix)])
        with pytest.raises(MetadataCorrupt, match="which the floor names, is missing"):
            await world.start()

    run(scenario)
