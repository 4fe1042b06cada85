"""The arena: one ring of aligned memory that is WAL image, log cache and upload source at the same time.

Always true:
- Positions are logical and only grow; `position % size_bytes` is the place in memory.
- `tail <= head <= tail + size_bytes`: bytes in [tail, head) belong to somebody, nothing there is overwritten.
- A reservation is contiguous in memory: where the ring's end is too near, the rest of it is skipped.
- The memory is allocated once. Touching its pages (first touch costs microseconds a page) happens in
  the background after start, in steps, so that it neither delays the first request nor the ones after it.
"""

from __future__ import annotations

import contextlib
import mmap

__all__ = ["ALIGNMENT_BYTES", "Arena"]

ALIGNMENT_BYTES = 4096
"""Block size to which WAL writes are padded: what O_DIRECT wants of memory, length and file offset."""

_HUGE_PAGE_BYTES = 2 << 20


class Arena:
    """A ring of `size_bytes` bytes, given out at the head and taken back at the tail."""

    __slots__ = ("_map", "head", "size_bytes", "tail", "view")

    def __init__(self, size_bytes: int) -> None:
        if size_bytes <= 0 or size_bytes % ALIGNMENT_BYTES:
            raise ValueError(f"arena size {size_bytes} is not a positive multiple of {ALIGNMENT_BYTES} bytes")
        self._map = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # no transparent huge pages: touching is slower, nothing else changes
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self.size_bytes = size_bytes
        self.view = memoryview(self._map)
        self.head = 0
        """Exclusive end of the memory given out."""
        self.tail = 0
        """Start of the memory still in use."""

    @property
    def free_bytes(self) -> int:
        """Bytes that can still be given out (less what a skip at the ring's end may cost)."""
        return self.tail + self.size_bytes - self.head

    def room_to_end(self) -> int:
        """Contiguous bytes between the head and the end of the ring."""
        return self.size_bytes - self.head % self.size_bytes

    def reserve(self, size: int) -> int | None:
        """Give out `size` contiguous bytes: their logical position, or None while there is no room."""
        head = self.head
        to_end = self.size_bytes - head % self.size_bytes
        if size > to_end:
            head += to_end
        if head + size > self.tail + self.size_bytes:
            return None
        self.head = head + size
        return head

    def slice(self, position: int, size: int) -> memoryview:
        """A view of the bytes at a logical position."""
        start = position % self.size_bytes
        return self.view[start : start + size]

    def release_to(self, position: int) -> None:
        """Take back everything below a logical position. No view of it may be in use any more."""
        if not self.tail <= position <= self.head:
            raise ValueError(f"cannot release the arena to {position}: it holds [{self.tail}, {self.head})")
        self.tail = position

    def touch(self, start: int, size: int) -> int:
        """Touch one step of fresh pages without changing a byte in use; returns where the next step starts.

        Only pages above the head of the first lap need it. Bounded by the caller's `size`, so that the event
        loop is not held up.
        """
        end = min(start + size, self.size_bytes)
        view = self.view
        step = ALIGNMENT_BYTES
        for at in range(max(start, self.head) // step * step + step, end, step):
            view[at] = 0
        return end
