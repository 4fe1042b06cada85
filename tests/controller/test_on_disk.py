"""The controller on the embedded object store: a directory."""

from __future__ import annotations

import random
from pathlib import Path

from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.snapshot import digest
from s3stream.local import LocalObjectStore
from s3stream.paths import Paths


async def test_metadata_is_kept_in_a_directory(tmp_path: Path) -> None:
    settings = ControllerSettings(snapshot_interval_entries=10, retained_entries=2, entry_min_age_ms=0)
    before = ""
    for life in range(3):
        store = LocalObjectStore(tmp_path)
        controller = await Controller.start(
            store=store, paths=Paths(), settings=settings, now_ms=lambda: 0, rng=random.Random(life)
        )
        assert life == 0 or digest(controller.image.state) == before
        assert controller.image.topic_names() == [f"topic-{number:02}" for number in range(life * 8)]
        await controller.register_node(1, "wal-1", wal_epoch=life)
        for number in range(life * 8, life * 8 + 8):
            await controller.create_topics([TopicSpec(name=f"topic-{number:02}", partition_count=3)])
        assert controller.image.controller_epoch == life + 1
        before = digest(controller.image.state)
        await controller.close()
        await store.close()
