"""Progress on a terminal."""

from __future__ import annotations

from broker.verify.command import TerminalProgress
from broker.verify.verify import Progress


def progress(objects: int) -> Progress:
    return Progress(objects=objects, of_objects=9, read_bytes=5 << 20, findings=1)


def test_progress_is_one_line_a_few_times_a_second_and_makes_room_for_others() -> None:
    written: list[str] = []
    now_s = 0.0
    show = TerminalProgress(written.append, clock_s=lambda: now_s)
    show.clear()
    assert written == []
    show(progress(1))
    show(progress(2))
    now_s = 0.3
    show(progress(3))
    show.clear()
    show.clear()
    assert written == [
        "\r\x1b[K1 of 9 objects, 5 MiB read, 1 findings",
        "\r\x1b[K3 of 9 objects, 5 MiB read, 1 findings",
        "\r\x1b[K",
    ]
