"""Planted: were anything skipped that was acknowledged, the checker would say so."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from s3stream.errors import ObjectCorrupt
from s3stream.object_reader import ObjectReader
from tests.broker.conftest import StartNode
from tests.broker.test_damage import object_of, three_objects
from tests.broker.test_damaged_wal import Crashed
from tests.broker.wire import Wire, batch, records_in
from tests.checker.history import FinalLog, Found, History, Kind
from wal.frame import FRAME_HEADER_SIZE_BYTES
from wal.salvage import StreamLoss


def violations(found: list[Found], count: int, end_offset: int) -> set[Kind]:
    """What the checker says of a log in which records 0 to `count` were acknowledged at their own offsets."""
    history = History()
    for number in range(count):
        history.sent("hurt-0", "p", number, number)
        history.acknowledged("hurt-0", "p", number, number)
    log = FinalLog(log_start_offset=0, log_end_offset=end_offset, found=found)
    return {violation.kind for violation in history.check({"hurt-0": log})}


async def read_all(wire: Wire, end_offset: int) -> list[Found]:
    found: list[Found] = []
    offset = 0
    while offset < end_offset:
        data = await wire.fetch("hurt", offset)
        if data.error_code:
            break
        for record in records_in(data):
            if record.offset >= offset:
                assert record.value is not None
                found.append(Found(record.offset, "p", int(record.value), int(record.value)))
                offset = record.offset + 1
    return found


async def test_a_reader_that_skips_what_is_damaged_is_caught(
    start_node: StartNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await three_objects(start_node)
    honest = ObjectReader.read

    async def skipping(self: ObjectReader, stream_id: int, offset: int, *rest: object, **options: object) -> object:
        try:
            return await honest(self, stream_id, offset, *rest, **options)  # type: ignore[arg-type]
        except ObjectCorrupt:
            (lost,) = (each for each in self.damage.ranges() if each.base_offset <= offset < each.end_offset)
            return await honest(self, stream_id, lost.end_offset, *rest, **options)  # type: ignore[arg-type]

    async with start_node() as node:
        object_of(node, "hurt", 10, tmp_path / "objects").unlink()
        async with await Wire.connect(node.bootstrap_servers) as wire:
            assert [record.offset for record in await read_all(wire, 30)] == [*range(10)], "it stops there"
            with monkeypatch.context() as planted:
                planted.setattr(ObjectReader, "read", skipping)
                found = await read_all(wire, 30)
            assert [record.offset for record in found] == [*range(10), *range(20, 30)]
            assert Kind.LOSS in violations(found, 30, 30)


async def test_a_partition_that_goes_on_without_its_lost_records_is_caught(
    start_node: StartNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_node(upload_interval_ms=600_000) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("hurt")
        for number in range(4):
            await wire.produce("hurt", batch(b"%d" % number))
        for name in ("wal", "objects"):
            await asyncio.to_thread(shutil.copytree, tmp_path / name, tmp_path / "crashed" / name)
    crashed = Crashed(tmp_path / "crashed")
    crashed.flip((await crashed.frames())[1].offset + FRAME_HEADER_SIZE_BYTES + 20)
    monkeypatch.setattr(StreamLoss, "is_complete", property(lambda self: True))
    async with crashed.node() as (_, wire):
        found = await read_all(wire, 1)
        assert [record.offset for record in found] == [0], "as if nothing had been there"
        assert Kind.LOSS in violations(found, 4, 1)
