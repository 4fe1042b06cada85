"""What people and programs are shown of a WAL, objects, metadata and partitions, beside a broker and after its crash."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.__main__ import main
from broker.inspect.rows import age, shortened, size, when
from tests.broker.conftest import StartNode
from tests.broker.kept import NOW_MS, crashed
from tests.broker.wire import Wire, batch
from wal.header import RING_START_BYTES

GOLDEN = Path(__file__).parent / "golden"
SHOWN: dict[str, tuple[object, ...]] = {
    "wal": ("wal", "--frames"),
    "object": ("object", 1, "--records"),
    "metadata": ("metadata", "--from", 3, "--to", 10),
    "partition": ("partition", "orders-0"),
}


def without_chance(text: str, directory: Path) -> str:
    """Leave out times of files, random ids, and sizes that go by the length of a path."""
    text = re.sub(r"\b[0-9a-f]{32}\b", "<id>", text.replace(str(directory), "<data>"))
    text = re.sub(r"(snapshot as of entry \d+: |log: entries \d+ to \d+, )[\d.]+ KiB", r"\1<size>", text)
    return re.sub(r"(written|newest of) \d{4}-\S+Z", r"\1 <time>", text)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a crash left."""
    return crashed(tmp_path_factory.mktemp("inspect"))


Tool = Callable[..., tuple[int, str]]


@pytest.fixture
def tidelog(capsys: pytest.CaptureFixture[str]) -> Tool:
    def run(*arguments: object) -> tuple[int, str]:
        status = main(["--log-level", "error", *map(str, arguments)])
        return status, capsys.readouterr().out

    return run


@pytest.mark.parametrize("golden", SHOWN)
def test_people_read_this(kept: Path, tidelog: Tool, golden: str) -> None:
    """Where a change is meant, `python -m tests.broker.inspect` writes these files anew."""
    status, text = tidelog("inspect", *SHOWN[golden], "--data", kept)

    assert status == 0
    assert without_chance(text, kept) == (GOLDEN / f"{golden}.txt").read_text()


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_programs_read_one_object_a_line(kept: Path, tidelog: Tool) -> None:
    status, text = tidelog("inspect", "wal", kept / "wal", "--bucket", (kept / "objects").as_uri(), "--json")

    assert status == 0
    rows = rows_of(text)
    assert [row["kind"] for row in rows] == ["wal", "header-copy", "header-copy", "stream-tail", "end"]
    assert rows[3]["partition"] == "orders-0"
    assert rows[3]["not_uploaded"] == [[12, 13]]
    assert rows[0]["open_in_process"] is None


def test_a_reader_that_has_enough_ends_it_in_silence(kept: Path) -> None:
    """As `| head` does."""
    nobody_reads, written = os.pipe()
    os.close(nobody_reads)
    command = [sys.executable, "-m", "broker", "inspect", "wal", "--frames", "--data", str(kept)]
    done = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(written)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_wal_alone_is_shown_without_names(kept: Path, tidelog: Tool, tmp_path: Path) -> None:
    status, text = tidelog("inspect", "wal", kept / "wal", "--bucket", (tmp_path / "nowhere").as_uri())

    assert status == 0
    assert text.startswith("note: without the metadata, partitions and what is not uploaded cannot be told: ")
    assert "stream 1: 1 frame" in text


def test_a_loss_in_the_wal_is_shown_with_its_proof(kept: Path, tidelog: Tool, tmp_path: Path) -> None:
    shutil.copytree(kept, tmp_path / "kept")
    path = tmp_path / "kept/wal/wal"
    (tail,) = [row for row in rows_of(tidelog("inspect", "wal", "--data", kept, "--json", "--frames")[1]) if row["kind"] == "frame"]  # fmt: skip
    content = bytearray(path.read_bytes())
    content[RING_START_BYTES + tail["offset"] + 70] ^= 1  # of the last frame: torn, as far as anybody can tell
    path.write_bytes(content)

    status, text = tidelog("inspect", "wal", "--data", tmp_path / "kept")

    assert status == 0
    assert "0 frames" in text
    assert "nothing there or beyond proves that more was acknowledged" in text
    content[4096 + 100 : 4096 + 104] = content[100:104] = b"\0\0\0\1"  # both copies of the header
    path.write_bytes(content)
    status, text = tidelog("inspect", "wal", "--data", tmp_path / "kept")
    assert status == 1
    assert "DAMAGE: neither copy of the WAL header is intact" in text


def test_damage_in_an_object_does_not_hide_the_rest(kept: Path, tidelog: Tool, tmp_path: Path) -> None:
    shutil.copytree(kept, tmp_path / "kept")
    path = tmp_path / "kept/objects/data/ff/1"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)

    status, text = tidelog("inspect", "object", "data/ff/1", "--data", tmp_path / "kept", "--json")

    assert status == 1
    blocks = [row for row in rows_of(text) if row["kind"] == "block"]
    assert [block["crc"] for block in blocks] == ["DAMAGED", "ok", "ok", "ok", "ok", "ok"]
    path.unlink()
    status, text = tidelog("inspect", "object", 1, "--data", tmp_path / "kept")
    assert (status, text.splitlines()[-1]) == (1, "DAMAGE: object 1 is not in the store (data/ff/1)")


def test_entries_are_whole_in_json(kept: Path, tidelog: Tool) -> None:
    status, text = tidelog("inspect", "metadata", "--data", kept, "--entries", "--json")

    assert status == 0
    records = [record for row in rows_of(text) if row["kind"] == "entry" for record in row["records"]]
    assert records[0] == {"type": "LeaderChanged", "controller_epoch": 1, "leader": ""}
    (first, *_) = [record for record in records if record["type"] == "ObjectCommitted"]
    assert [(value["stream_id"], value["end_offset"]) for value in first["ranges"]] == [(1, 4), (2, 4), (3, 1)]


def test_a_damaged_entry_is_shown_and_the_rest_too(kept: Path, tidelog: Tool, tmp_path: Path) -> None:
    shutil.copytree(kept, tmp_path / "kept")
    path = sorted((tmp_path / "kept/objects/metadata/log").iterdir())[3]
    path.write_bytes(path.read_bytes()[:-1])

    status, text = tidelog("inspect", "metadata", "--data", tmp_path / "kept", "--entries")

    assert status == 1
    assert f"DAMAGE: metadata/log/{path.name} is damaged: its CRC does not match" in text
    assert "entry 4: " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("partition", "orders-7"), "there is no partition orders-7; write TOPIC-NUMBER. There are: notes-0"),
        (("object", "metadata/floor"), "neither an object id nor the key of a data object"),
        (("wal", "/nowhere"), "there is no WAL in /nowhere"),
        (("metadata", "--bucket", "file:///nowhere"), "no directory /nowhere"),
        (("wal", "--set", "wal.uri=null://"), "keeps nothing that could be looked at"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    kept: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--log-level", "error", "inspect", *arguments, "--data", str(kept)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


async def test_beside_a_live_broker(start_node: StartNode, tmp_path: Path) -> None:
    async with start_node(upload_interval_ms=600_000) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        for number in range(50):
            await wire.produce("t", batch(b"%d" % number))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "broker", "inspect", "partition", "t-0", "--json",
            "--set", f"wal.uri={node.wal_uri}", "--bucket", node.object_store_uri,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 0
        tail = rows_of(output.decode())[-1]
        assert (tail["kind"], tail["not_uploaded"], tail["log_end_offset"]) == ("wal-tail", [[0, 50]], 50)
        assert (await wire.produce("t", batch(b"next"))).base_offset == 50, "the broker goes on undisturbed"


def test_how_sizes_times_and_bytes_are_written() -> None:
    assert [size(n) for n in (0, 1023, 1536, 64 << 20, 3 << 30, 5 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "64.0 MiB", "3.0 GiB", "5.0 TiB",
    ]  # fmt: skip
    assert [when(ms) for ms in (-1, NOW_MS, 1 << 62)] == ["-", "2025-06-15T15:06:40.000Z", "4611686018427387904 ms"]
    assert [age(ms) for ms in (0, 90_000, 600_000, 7_200_000, 400_000_000)] == [
        "0 s",
        "90 s",
        "10.0 min",
        "2.0 h",
        "4.6 d",
    ]
    assert shortened(None) is None
    assert shortened("näh".encode()) == "näh"
    assert shortened(b"\x00\xff") == "0x00ff"
    assert shortened(b"x" * 100) == "x" * 60 + "… (100 bytes)"
    assert shortened(("é" * 59 + "x" + "é" * 9).encode("utf-8")) == "é" * 30 + "… (137 bytes)"
    assert shortened(("x" + "é" * 59).encode()) == "x" + "é" * 29 + "… (119 bytes)"
