"""A WAL that is not this node's, or of another format: a node refuses it, says what to do, and leaves it as it is."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch
from wal.checksum import crc32c
from wal.errors import WalCorrupt, WalMismatch, WalUnsupportedFormat
from wal.header import RING_START_BYTES
from wal.slot import SLOT_HEADER_SIZE_BYTES

_HEADER_CRC_AT = 1024


def bucket_uri(path: Path) -> dict[str, str]:
    return {"wal_uri": f"objects+{path.as_uri()}?capacity=16MiB&batch_interval_ms=0"}


def newer_header(directory: Path) -> None:
    path = directory / "wal" / "wal"
    image = bytearray(path.read_bytes())
    for copy in (0, RING_START_BYTES // 2):
        struct.pack_into("<I", image, copy + 8, 99)
        struct.pack_into("<I", image, copy + _HEADER_CRC_AT, crc32c(image[copy : copy + _HEADER_CRC_AT]))
    path.write_bytes(image)


def no_header(directory: Path) -> None:
    path = directory / "wal" / "wal"
    path.write_bytes(bytes(RING_START_BYTES) + path.read_bytes()[RING_START_BYTES:])


def newer_slots(directory: Path) -> None:
    for path in (directory / "bucket" / "wal" / "log").rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            struct.pack_into("<I", data, 8, 99)
            struct.pack_into("<I", data, SLOT_HEADER_SIZE_BYTES - 4, crc32c(data[: SLOT_HEADER_SIZE_BYTES - 4]))
            path.write_bytes(data)


def identity(**changes: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "bucket" / "wal" / "node" / "1"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def no_identity(directory: Path) -> None:
    (directory / "bucket" / "wal" / "node" / "1").write_text("something else")


def nothing(directory: Path) -> None:
    """As it was left."""


def digests(*places: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for place in places
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name not in ("lock", "fence")
    }


@pytest.mark.parametrize(
    ("in_bucket", "change", "settings", "error", "advice"),
    [
        (False, newer_header, {}, WalUnsupportedFormat, "version of Tidelog that wrote it, or a newer one"),
        (False, no_header, {}, WalCorrupt, "restore the volume from a snapshot, or abandon this WAL"),
        (False, nothing, {"node_id": 2}, WalMismatch, "give each node a directory of its own, or set node.id = 1"),
        (False, nothing, {"object_store_uri": "other"}, WalMismatch, "give each cluster a directory of its own"),
        (True, newer_slots, {}, WalUnsupportedFormat, "version of Tidelog that wrote it, or a newer one"),
        (True, identity(format=99), {}, WalUnsupportedFormat, "start it with a newer Tidelog"),
        (True, no_identity, {}, WalCorrupt, "restore the object, or abandon this WAL"),
        (True, identity(cluster_id="another"), {}, WalMismatch, "give each cluster a prefix of its own in wal.uri"),
        (True, nothing, {"object_store_uri": "other"}, WalMismatch, "give each cluster a prefix of its own in wal.uri"),
    ],
)
async def test_it_is_refused_and_left_alone(
    start_node: StartNode,
    tmp_path: Path,
    in_bucket: bool,
    change: Callable[[Path], None],
    settings: dict[str, Any],
    error: type[Exception],
    advice: str,
) -> None:
    place = bucket_uri(tmp_path / "bucket") if in_bucket else {}
    async with start_node(**place) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        assert (await wire.produce("t", batch(b"0"))).base_offset == 0
    change(tmp_path)
    changed = {
        name: (tmp_path / value).as_uri() if name == "object_store_uri" else value for name, value in settings.items()
    }
    wal = tmp_path / "bucket" / "wal" if in_bucket else tmp_path / "wal"
    before = digests(wal)
    with pytest.raises(error, match=advice):
        async with start_node(**place, **changed):
            pass
    assert digests(wal) == before
