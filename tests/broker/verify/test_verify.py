"""Every kind of damage is found, as exactly what it is; and nothing is found where nothing is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.__main__ import main
from controller.entry import decode_entry, encode_entry
from controller.records import ObjectCommitted, Range, Record, encode_records
from controller.snapshot import capture, encode, restore
from s3stream.metadata import ObjectId
from s3stream.object_format import ObjectBuilder
from s3stream.paths import Paths
from tests.broker.kept import crashed
from tests.broker.wire import batch

PATHS = Paths()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a crash left, unharmed."""
    return crashed(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def objects(whole: Path, tmp_path: Path) -> Path:
    """A bucket of this test's own."""
    shutil.copytree(whole / "objects", tmp_path / "objects")
    return tmp_path / "objects"


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[dict[str, Any]]]]:
    def run(bucket: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        status = main(["--log-level", "error", "verify", "--bucket", bucket.as_uri(), "--json", *arguments])
        return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def findings(rows: list[dict[str, Any]]) -> list[tuple[str, int | None, str | None]]:
    return [(row["what"], row["object_id"], row["partition"]) for row in rows if row["kind"] == "finding"]


def data(objects: Path, object_id: int) -> Path:
    return objects / PATHS.data_object(ObjectId(object_id))


def flip(path: Path, position: int) -> None:
    """One bit."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def rewrite(objects: Path, change: Callable[[Record], Record | None]) -> None:
    """Have the metadata log say something else, with all its CRCs right."""
    for path in sorted((objects / "metadata/log").iterdir()):
        entry = decode_entry(path.read_bytes(), int(path.name), where=path.name)
        records = [changed for record in entry.records if (changed := change(record)) is not None]
        path.write_bytes(b"".join(encode_entry(entry.header, encode_records(records))))


def without_snapshots(objects: Path) -> None:
    """As a younger bucket: the log is all there is."""
    shutil.rmtree(objects / "metadata/snapshot")
    (objects / "metadata/floor").unlink()


def ranges_of(objects: Path, object_id: int) -> tuple[Range, ...]:
    for path in sorted((objects / "metadata/log").iterdir()):
        for record in decode_entry(path.read_bytes(), int(path.name), where=path.name).records:
            if isinstance(record, ObjectCommitted) and record.object_id == object_id:
                return record.ranges
    raise AssertionError(f"object {object_id} was not committed")


def test_what_a_crash_left_is_clean(objects: Path, verify: Any) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in objects.rglob("*"))

    status, rows = verify(objects)

    assert (status, findings(rows)) == (0, [])
    summary = rows[-1]
    assert (summary["partitions"], summary["objects"], summary["batches"]) == (3, 3, 15)
    assert summary["compared_snapshots"] == summary["snapshots"] > 0
    assert summary["replayed_from"] == -1
    assert sorted((path, path.stat().st_mtime_ns) for path in objects.rglob("*")) == before, "nothing is touched"


def test_quick_reads_no_blocks(objects: Path, verify: Any) -> None:
    flip(data(objects, 1), 5)

    status, rows = verify(objects, "--quick")

    assert (status, rows[-1]["blocks"]) == (0, 0)


def test_a_flipped_bit_in_a_block(objects: Path, verify: Any) -> None:
    flip(data(objects, 2), 5)

    status, rows = verify(objects)

    assert (status, findings(rows)) == (1, [("object-block", 2, "orders-0")])
    assert (rows[0]["base_offset"], rows[0]["end_offset"]) == (4, 8)
    assert "restore this key" in rows[0]["advice"]


@pytest.mark.parametrize(("from_end", "what"), [(10, "object-footer"), (70, "object-index")])
def test_a_flipped_bit_in_footer_or_index(objects: Path, verify: Any, from_end: int, what: str) -> None:
    flip(data(objects, 2), -from_end)
    for arguments in ((), ("--quick",)):
        status, rows = verify(objects, *arguments)
        assert (status, findings(rows)) == (1, [(what, 2, None)])


def test_a_missing_object_is_told_for_each_range_that_is_lost(objects: Path, verify: Any) -> None:
    data(objects, 1).unlink()

    status, rows = verify(objects)

    assert status == 1
    assert [(what, name) for what, _, name in findings(rows)] == [
        ("object-missing", "orders-0"), ("object-missing", "orders-1"), ("object-missing", "notes-0"),
    ]  # fmt: skip


def test_a_truncated_object(objects: Path, verify: Any) -> None:
    content = data(objects, 3).read_bytes()
    data(objects, 3).write_bytes(content[:-100])

    status, rows = verify(objects)

    assert (status, findings(rows)) == (1, [("object-size", 3, None)])
    assert f"{len(content)} were committed" in rows[0]["problem"]


def test_exchanged_objects(objects: Path, verify: Any) -> None:
    first, second = data(objects, 1).read_bytes(), data(objects, 2).read_bytes()
    data(objects, 1).write_bytes(second)
    data(objects, 2).write_bytes(first)

    status, rows = verify(objects)

    assert (status, findings(rows)) == (1, [("object-foreign", 1, None), ("object-foreign", 2, None)])
    assert "its content is that of object 2" in rows[0]["problem"]


def test_a_commit_that_is_lost_from_the_log_leaves_a_gap(objects: Path, verify: Any) -> None:
    without_snapshots(objects)
    rewrite(objects, lambda record: None if isinstance(record, ObjectCommitted) and record.object_id == 2 else record)

    status, rows = verify(objects, "--unreferenced")

    assert status == 1
    assert [(what, name) for what, _, name in findings(rows)] == [
        ("metadata-invariant", "orders-0"), ("metadata-invariant", "orders-1"), ("metadata-invariant", "notes-0"),
    ]  # fmt: skip
    assert "a range ends at 4 and the next begins at 8" in rows[0]["problem"]
    assert [row["status"] for row in rows if row["kind"] == "unreferenced"] == ["not committed (yet)"]


@pytest.mark.parametrize(("shift", "problem"), [(1, "ends at 4 and the next begins at 5"), (-1, "begins at 3")])
def test_a_gap_and_an_overlap_in_the_metadata(objects: Path, verify: Any, shift: int, problem: str) -> None:
    without_snapshots(objects)

    def change(record: Record) -> Record:
        if not (isinstance(record, ObjectCommitted) and record.object_id == 2):
            return record
        first, *rest = record.ranges
        moved = Range.of(first.value())
        moved = type(first)(**{**{n: getattr(moved, n) for n in first.__struct_fields__}, "base_offset": 4 + shift})
        values = {name: getattr(record, name) for name in record.__struct_fields__}
        return ObjectCommitted(**{**values, "ranges": (moved, *rest)})

    rewrite(objects, change)

    status, rows = verify(objects)

    assert status == 1
    # What was committed is then not what the object holds, either.
    assert findings(rows) == [("metadata-invariant", None, "orders-0"), ("object-ranges", 2, "orders-0")]
    assert problem in rows[0]["problem"]


def test_a_lost_log_entry(objects: Path, verify: Any) -> None:
    lost = sorted((objects / "metadata/log").iterdir())[4]
    lost.unlink()

    status, rows = verify(objects)

    assert (status, findings(rows)) == (1, [("log-entry-missing", None, None)])
    assert rows[0]["key"] == f"metadata/log/{lost.name}"
    assert rows[1]["kind"] == "unchecked", "which objects there must be cannot be told"


def test_a_damaged_log_entry(objects: Path, verify: Any) -> None:
    damaged = sorted((objects / "metadata/log").iterdir())[4]
    flip(damaged, -1)

    status, rows = verify(objects)

    assert (status, findings(rows)) == (1, [("log-entry-damaged", None, None)])
    assert damaged.name in rows[0]["problem"]


def test_a_snapshot_that_is_damaged_or_missing(objects: Path, verify: Any) -> None:
    newest = sorted((objects / "metadata/snapshot").iterdir())[-1]
    flip(newest, -20)
    assert findings(verify(objects)[1]) == [("snapshot-damaged", None, None)]
    newest.unlink()
    assert findings(verify(objects)[1]) == [("snapshot-damaged", None, None)]


def test_a_snapshot_that_says_other_than_the_log(objects: Path, verify: Any) -> None:
    newest = sorted((objects / "metadata/snapshot").iterdir())[-1]
    *_, found = restore(newest.read_bytes(), where=newest.name)
    assert found is not None
    state, index = found
    state.tables.next_producer_id += 1
    newest.write_bytes(b"".join(encode(capture(state, index))))

    status, rows = verify(objects)

    assert (status, findings(rows)) == (1, [("replay", None, None)])
    assert "makes another state" in rows[0]["problem"]


@pytest.mark.parametrize(
    ("key", "what"), [("cluster", "cluster-marker"), ("metadata/leader", "leader"), ("metadata/floor", "floor")]
)
def test_a_damaged_marker_leader_or_floor(objects: Path, verify: Any, key: str, what: str) -> None:
    (objects / key).write_bytes(b"{}")
    status, rows = verify(objects)
    assert (status, findings(rows)) == (1, [(what, None, None)])


def test_a_marker_or_leader_that_is_missing(objects: Path, verify: Any) -> None:
    (objects / "cluster").unlink()
    (objects / "metadata/leader").unlink()
    assert findings(verify(objects)[1]) == [("cluster-marker", None, None), ("leader", None, None)]


def test_batches_that_are_out_of_order_under_right_crcs(objects: Path, verify: Any) -> None:
    """As a defect of ours might write them: only what is inside the block tells."""
    value = ranges_of(objects, 1)[0]
    builder = ObjectBuilder(ObjectId(1))
    parts = [batch(b"a", b"b", base_offset=2), batch(b"c", b"d", base_offset=0)]
    builder.add_data(
        stream_id=value.stream_id, leader_epoch=0, base_offset=0, end_offset=4, record_count=4,
        max_timestamp_ms=value.max_timestamp_ms, parts=list(parts),
    )  # fmt: skip
    content = b"".join(parts) + builder.finish().data
    data(objects, 1).write_bytes(content)
    without_snapshots(objects)

    def change(record: Record) -> Record:
        if not (isinstance(record, ObjectCommitted) and record.object_id == 1):
            return record
        kept = {name: getattr(value, name) for name in value.__struct_fields__}
        only = Range(**{**kept, "size_bytes": sum(map(len, parts)), "has_state": False})
        values = {name: getattr(record, name) for name in record.__struct_fields__}
        return ObjectCommitted(**{**values, "size_bytes": len(content), "ranges": (only, *record.ranges[1:])})

    rewrite(objects, change)

    _, rows = verify(objects)

    assert ("batches", 1, "orders-0") in findings(rows)
    (found,) = [row for row in rows if row.get("what") == "batches"]
    assert "the batch at offset 2 (byte 0 of the block) is the first, the index says 0" in found["problem"]


def test_orphans_and_unfinished_uploads_are_listed_and_no_finding(objects: Path, verify: Any) -> None:
    shutil.copy(data(objects, 1), _made(data(objects, 900)))
    (objects / ".tmp").mkdir(exist_ok=True)
    (objects / ".tmp" / "data%2F00%2F901~0123").write_bytes(b"half")
    (objects / "data" / "stranger").write_bytes(b"")

    status, rows = verify(objects, "--unreferenced")

    assert (status, findings(rows)) == (2, []), "a key that is not ours was not checked"
    assert [(row["kind"], row.get("object_id")) for row in rows[:-1]] == [
        ("unreferenced", 900), ("unchecked", None), ("multipart", None),
    ]  # fmt: skip
    assert (rows[-1]["unreferenced_objects"], rows[-1]["unfinished_uploads"]) == (1, 1)


def _made(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    return path


def test_what_outlived_its_bound_while_a_broker_ran_is_a_finding(objects: Path, verify: Any) -> None:
    """The nodes registered in 2025 by their clock; the newest entry of the log is as old as its file."""
    shutil.copy(data(objects, 1), _made(data(objects, 900)))
    os.utime(data(objects, 900), (1_600_000_000, 1_600_000_000))

    status, rows = verify(objects)

    assert (status, findings(rows)) == (1, [("not-collected", 900, None)])


def test_no_cluster_is_not_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["verify", "--bucket", (tmp_path / "empty").as_uri()]) == 2
    assert "no cluster lives in" in capsys.readouterr().err
    assert main(["verify", "--bucket", (tmp_path / "nowhere").as_uri()]) == 2
    assert "there is no directory" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["verify", "--parallel", "0"])
    assert caught.value.code == 2


def test_people_read_this(objects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(data(objects, 2), 5)

    assert main(["verify", "--bucket", objects.as_uri()]) == 1

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "FINDING object-block: object 2 (data/45/2), stream 1 orders-0, offsets [4, 8): bytes 0 to 302 do not match their CRC"
    )
    assert lines[1].startswith("  what to do: restore this key from the bucket's versions or a backup; ")
    assert lines[-1] == "1 finding"
