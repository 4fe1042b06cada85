"""The system calls themselves: each acknowledgement follows a durable write, as the kernel sees it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wal.driving import skip_without_aio
from wal.header import RING_START_BYTES

PROGRAM = """
import asyncio, os, random, sys
from wal.arena import Arena
from wal.open import open_wal

async def main(directory, acknowledgements, io):
    wal = await open_wal(
        f"file://{directory}?capacity=1MiB&io={io}", arena=Arena(1 << 20), cluster_id="tide", node_id=1, rng=random.Random(1)
    )
    async for _ in wal.recover():
        pass
    wal.set_listeners(lambda offset: os.write(acknowledgements, b"ack %d" % offset), print)
    await wal._format_task
    os.write(acknowledgements, b"begin")
    for number in range(40):
        for _ in range(number % 5):
            wal.reserve(700)[:] = bytes(700)
            wal.append(stream_id=1, leader_epoch=1, base_offset=number, record_count=1)
        await asyncio.sleep(0.001)
    while wal.durable_offset < wal.end_offset:  # so that nothing is acknowledged while the trim writes its header
        await asyncio.sleep(0.001)
    await wal.trim(wal.durable_offset)
    os.write(acknowledgements, b"trimmed")
    await wal.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
"""

STRACE = ("strace", "-f", "-e", "trace=openat,pwrite64,write,io_submit,io_getevents")
OPENED = re.compile(r'openat\(AT_FDCWD, "[^"]*/ring/wal", (\S+)\) += (\d+)')
RETURNED = re.compile(r"= (\d+)$")
SUBMITTED = re.compile(
    r"aio_data=(0x[0-9a-f]+|0), aio_lio_opcode=IOCB_CMD_PWRITE, aio_fildes=(\d+), .*aio_nbytes=(\d+), aio_offset=(\d+)"
)
COMPLETED = re.compile(r"\{data=(0x[0-9a-f]+|0), obj=\w+, res=(-?\d+), res2=0\}")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("io", ["thread", "aio"])
def test_each_acknowledgement_follows_the_return_of_a_durable_write(tmp_path: Path, io: str) -> None:
    if io == "aio":
        skip_without_aio(tmp_path)
    trace = tmp_path / "trace"
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [*STRACE, "-o", str(trace), sys.executable, "-c", PROGRAM, str(tmp_path / "ring"), str(writer), io],
            capture_output=True,
            text=True,
            pass_fds=[writer],
            check=False,
        )
    finally:
        os.close(reader)
        os.close(writer)
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr

    acknowledgements, trims = check_order(trace.read_text().splitlines(), writer)

    assert acknowledgements > 10
    assert trims == 1


def test_an_acknowledgement_before_its_event_is_noticed() -> None:
    lines = [
        '1 openat(AT_FDCWD, "/d/ring/wal", O_RDWR|O_CLOEXEC|O_DSYNC|O_DIRECT) = 5',
        '1 io_submit(0x7f, 1, [{aio_data=0x1f, aio_lio_opcode=IOCB_CMD_PWRITE, aio_fildes=5, aio_buf="x"..., '
        f"aio_nbytes=4096, aio_offset={RING_START_BYTES}, aio_flags=IOCB_FLAG_RESFD, aio_resfd=9}}]) = 1",
        '1 write(9, "ack 72", 6) = 6',
        "1 io_getevents(0x7f, 0, 32, [{data=0x1f, obj=0x5, res=4096, res2=0}], {tv_sec=0, tv_nsec=0}) = 1",
    ]
    with pytest.raises(AssertionError, match="acknowledged 72"):
        check_order(lines, 9)
    check_order([lines[0], lines[1], lines[3], lines[2]], 9)


def test_an_acknowledgement_before_its_write_is_noticed() -> None:
    lines = [
        '1 openat(AT_FDCWD, "/d/ring/wal", O_RDWR|O_CLOEXEC|O_DSYNC|O_DIRECT) = 5',
        f'2 pwrite64(5, ""..., 4096, {RING_START_BYTES} <unfinished ...>',
        '1 write(9, "ack 72", 6) = 6',
        "2 <... pwrite64 resumed>) = 4096",
    ]
    with pytest.raises(AssertionError, match="acknowledged 72"):
        check_order(lines, 9)
    check_order([lines[0], lines[1], lines[3], lines[2]], 9)
    with pytest.raises(AssertionError, match="O_DSYNC"):
        check_order([lines[0].replace("|O_DSYNC", ""), *lines[1:]], 9)


def check_order(lines: list[str], acknowledgements_fd: int) -> tuple[int, int]:
    """Walk a trace; returns how many acknowledgements and trims were checked."""
    fd = -1
    durable_to = 0
    header_writes = 0
    started: dict[str, tuple[int, int]] = {}
    """Writes under way, by the thread that is in them or by the number that the kernel gives back."""
    acknowledgements = trims = headers_before_trim = 0

    def returned(key: str, result: int, line: str) -> None:
        nonlocal durable_to, header_writes
        size, position = started.pop(key)
        assert result == size, line
        if position < RING_START_BYTES:
            header_writes += 1
        elif position <= RING_START_BYTES + durable_to + 4096:
            durable_to = max(durable_to, position + size - RING_START_BYTES)

    for line in lines:
        thread, call = line.split(maxsplit=1)
        if opened := OPENED.match(call):
            assert "O_DSYNC" in opened[1], f"the log is open without O_DSYNC: {opened[1]}"
            fd = int(opened[2])
        elif write := re.match(rf"pwrite64\({fd}, .*, (\d+), (\d+)(\)| <unfinished)", call):
            started[thread] = (int(write[1]), int(write[2]))
        if call.startswith(("pwrite64(", "<... pwrite64 resumed")) and thread in started:
            if result := RETURNED.search(call):
                returned(thread, int(result[1]), line)
        elif call.startswith("io_submit("):
            for number, target, size, position in SUBMITTED.findall(call):
                if int(target) == fd:
                    started[number] = (int(size), int(position))
        elif call.startswith("io_getevents("):
            for number, result_size in COMPLETED.findall(call):
                if number in started:
                    returned(number, int(result_size), line)
        elif call.startswith(f'write({acknowledgements_fd}, "begin"'):
            durable_to = 0  # what was written so far were zeros
        elif ack := re.match(rf'write\({acknowledgements_fd}, "ack (\d+)"', call):
            assert int(ack[1]) <= durable_to, f"acknowledged {ack[1]} when {durable_to} was durable"
            acknowledgements += 1
            headers_before_trim = header_writes
        elif call.startswith(f'write({acknowledgements_fd}, "trimmed"'):
            assert header_writes > headers_before_trim, "a trim returned before its header was durable"
            trims += 1
    return acknowledgements, trims
