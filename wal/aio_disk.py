"""The disk port over Linux's kernel AIO: no thread, no hand-over, completions by eventfd.

A thread behind a queue costs two hand-overs a write, each tens of microseconds and a fight for the interpreter's lock. Here
the event loop submits the write itself (`io_submit(2)`) and is woken by the kernel when it is durable. The calls go
through ctypes, since no maintained package wraps them without a compiler.

Always true:
- Only for a descriptor that is open with O_DIRECT: for any other the kernel would write inside `io_submit` and hold the
  event loop up.
- The descriptor is open with O_DSYNC, so an event means: durable. A short write is continued, never announced.
- Memory under an operation is referenced until its event came; `close` waits for every event.
- Errors of a submission are announced like those of an operation, never raised into the caller.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import platform
import struct
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from wal.disk import OnDone

__all__ = ["AioDisk"]

_DEPTH: Final = 32
"""Operations under way at a time; the WAL has one write, one header and one formatting step."""

_SYSCALLS: Final = {  # io_setup, io_destroy, io_getevents, io_submit (kernel: include/uapi/asm/unistd.h)
    "x86_64": (206, 207, 208, 209),
    "aarch64": (0, 1, 4, 2),
}
_PREAD: Final = 0
_PWRITE: Final = 1
_FDSYNC: Final = 3
_FLAG_EVENTFD: Final = 1

_IOCB: Final = struct.Struct("=QIIHhIQQqQII")
"""struct iocb of linux/aio_abi.h: data, key, rw flags, opcode, priority, fd, buffer, bytes, offset, 0, flags, eventfd."""
_EVENT: Final = struct.Struct("=QQqq")
"""struct io_event: data, iocb, result, second result."""


class _Operation:
    """One operation under way."""

    __slots__ = ("data", "on_done", "opcode", "position")

    def __init__(self, opcode: int, position: int, data: memoryview, on_done: OnDone) -> None:
        self.opcode = opcode
        self.position = position
        self.data = data
        self.on_done = on_done


class AioDisk:
    """A file whose I/O the kernel does beside the event loop."""

    def __init__(self, fd: int, *, size_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        """Takes over the file descriptor.

        Raises:
            OSError: this machine has no kernel AIO (or a sandbox forbids it); the descriptor is still the caller's.
        """
        self.size_bytes = size_bytes
        self._fd = fd
        self._loop = loop
        numbers = _SYSCALLS.get(platform.machine())
        if not sys.platform.startswith("linux") or numbers is None:
            raise OSError(errno.ENOSYS, "no kernel AIO on this platform")
        setup, destroy, get_events, submit = numbers
        context = ctypes.c_ulong(0)
        _check(_system_call(setup, ctypes.c_uint, ctypes.c_void_p)(_DEPTH, ctypes.addressof(context)))
        self._context = context.value
        self._destroy = _system_call(destroy, ctypes.c_ulong)
        self._submit = _system_call(submit, ctypes.c_ulong, ctypes.c_long, ctypes.c_void_p)
        self._get_events = _system_call(
            get_events, ctypes.c_ulong, ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p
        )
        self._iocbs = ctypes.create_string_buffer(_DEPTH * _IOCB.size)
        self._iocb_address = ctypes.addressof(self._iocbs)
        self._pointer = ctypes.c_void_p(0)
        self._pointer_address = ctypes.addressof(self._pointer)
        self._events = ctypes.create_string_buffer(_DEPTH * _EVENT.size)
        self._events_address = ctypes.addressof(self._events)
        self._no_wait = (ctypes.c_long * 2)(0, 0)
        self._no_wait_address = ctypes.addressof(self._no_wait)
        self._slots: list[_Operation | None] = [None] * _DEPTH
        self._free = list(range(_DEPTH))
        self._waiting: deque[_Operation] = deque()
        self._closed: asyncio.Future[None] | None = None
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.add_reader(self._event_fd, self._on_events)

    @staticmethod
    def suits(fd: int) -> bool:
        """Whether the descriptor is open with O_DIRECT."""
        return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)

    def write(self, position: int, data: memoryview, on_done: OnDone) -> None:
        """Write durably."""
        self._start(_Operation(_PWRITE, position, data, on_done))

    def read(self, position: int, into: memoryview, on_done: OnDone) -> None:
        """Fill `into`; a file that ends too early is an error."""
        self._start(_Operation(_PREAD, position, into, on_done))

    def sync(self, on_done: OnDone) -> None:
        """Flush the page cache's and the device's own write cache."""
        self._start(_Operation(_FDSYNC, 0, memoryview(b""), on_done))

    async def close(self) -> None:
        """Wait for every operation, then release the file."""
        if self._closed is None:
            self._closed = self._loop.create_future()
            self._close_when_idle()
        await asyncio.shield(self._closed)

    # ---- submission -------------------------------------------------------------------------------------------

    def _start(self, operation: _Operation) -> None:
        if self._waiting or not self._free:
            self._waiting.append(operation)
        else:
            self._submit_one(operation)

    def _submit_one(self, operation: _Operation) -> None:
        slot = self._free.pop()
        data = operation.data
        size = len(data)
        address = ctypes.addressof(ctypes.c_char.from_buffer(data)) if size else 0
        at = slot * _IOCB.size
        _IOCB.pack_into(
            self._iocbs,
            at,
            slot,
            0,
            0,
            operation.opcode,
            0,
            self._fd,
            address,
            size,
            operation.position,
            0,
            _FLAG_EVENTFD,
            self._event_fd,
        )
        self._pointer.value = self._iocb_address + at
        self._slots[slot] = operation
        if self._submit(self._context, 1, self._pointer_address) != 1:
            number = ctypes.get_errno()
            self._slots[slot] = None
            self._free.append(slot)
            if number == errno.EAGAIN and len(self._free) < _DEPTH:
                self._waiting.append(operation)  # the kernel's queue is full: go on when something is done
            else:
                self._loop.call_soon(operation.on_done, OSError(number, os.strerror(number)))

    # ---- completion -------------------------------------------------------------------------------------------

    def _on_events(self) -> None:
        try:
            os.eventfd_read(self._event_fd)
        except BlockingIOError:
            return  # all of it was taken by the last call
        while True:
            count = self._get_events(self._context, 0, _DEPTH, self._events_address, self._no_wait_address)
            _check(count)
            for at in range(0, count * _EVENT.size, _EVENT.size):
                slot, _, result, _ = _EVENT.unpack_from(self._events, at)
                operation = self._slots[slot]
                assert operation is not None, "an event belongs to an operation"
                self._slots[slot] = None
                self._free.append(slot)
                self._finish(operation, result)
            if count < _DEPTH:
                break
        while self._waiting and self._free:
            free = len(self._free)
            self._submit_one(self._waiting.popleft())
            if len(self._free) == free:
                break  # refused again
        if self._closed is not None:
            self._close_when_idle()

    def _finish(self, operation: _Operation, result: int) -> None:
        size = len(operation.data)
        if result == size:
            operation.on_done(None)
        elif result < 0:
            operation.on_done(OSError(-result, os.strerror(-result)))
        elif result == 0:
            operation.on_done(OSError(errno.EIO, f"the file ends at {operation.position}, {size} bytes too early"))
        else:
            rest = _Operation(operation.opcode, operation.position + result, operation.data[result:], operation.on_done)
            self._start(rest)

    def _close_when_idle(self) -> None:
        if len(self._free) < _DEPTH or self._waiting or self._event_fd < 0:
            return
        self._loop.remove_reader(self._event_fd)
        self._destroy(self._context)
        os.close(self._event_fd)
        self._event_fd = -1
        os.close(self._fd)
        assert self._closed is not None
        if not self._closed.done():
            self._closed.set_result(None)


def _system_call(number: int, *argument_types: type) -> Callable[..., int]:
    """One system call; its arguments' types are fixed, so that pointers are not cut to 32 bits."""
    function = ctypes.CDLL(None, use_errno=True)["syscall"]
    function.argtypes = (ctypes.c_long, *argument_types)
    function.restype = ctypes.c_long
    return partial(function, number)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
