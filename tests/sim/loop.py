"""An event loop on virtual time, where a process can be killed between any two callbacks.

Always true:
- Time passes only when nothing is ready to run: waiting *is* advancing the clock to the next timer. A thousand virtual
  seconds cost what their callbacks cost.
- Ready callbacks run in the loop's own FIFO order. Interleavings come from seeded delays at the ports (disk, object
  store, network), so one seed gives one trace, whatever the hash seed.
- Waiting with nothing to wait for raises `Deadlock`. A stray real socket ends there too; a thread raises `NotSimulated`, but for what a process does
  in an executor where `thread_s` is set: that takes no time but its latency.
- Code belongs to the process in whose context it was scheduled. When a process is killed, none of its callbacks runs
  again: a crash is not a cancellation, so no `finally` and no `except` of it runs either. `bury` cancels its tasks
  after the simulation is over, when nothing that they do can matter.
- A process that is suspended (SIGSTOP, a virtual machine that is moved) does not notice: its callbacks, timers included,
  wait, and run in their order when it goes on. Time goes on meanwhile, as CLOCK_BOOTTIME does.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import selectors
import threading
import traceback
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

__all__ = ["Deadlock", "NotSimulated", "Process", "ProcessKilled", "VirtualLoop", "context_of", "current_process"]

_EPOCH_S = 1000.0
"""Where monotonic time starts: not at 0, so that a forgotten initial value does not look like "just now"."""

_MAX_BURIAL_TURNS = 1000
"""A task that goes on for so many turns, cancelled in each of them, does not obey."""

_INSPECTION_MASK = 31
"""Between so many steps (and one) a process is inspected once."""

T = TypeVar("T")


class Deadlock(Exception):
    """Everything waits, and nothing is left that could end a wait."""


class NotSimulated(Exception):
    """The code reached for a thread, a real socket or another thing that has no virtual counterpart."""


class ProcessKilled(BaseException):
    """A dead process called a port. Nobody but the simulation may catch it."""


class Process:
    """A simulated operating-system process: what runs in its context dies with it."""

    def __init__(self, name: str, host: str = "") -> None:
        self.name = name
        self.host = host
        """The computer that it runs on."""
        self.deposed = False
        """Another process took its place while it was alive: it may not have noticed yet."""
        self.alive = True
        self.ports: Any = None
        """What it reaches of the world, for whoever runs in it."""
        self.exited = False
        """It ended by itself."""
        self.steps = 0
        """Callbacks run so far."""
        self.inspect: Callable[[], None] | None = None
        """Called between its steps, every now and then."""
        self.suspended = False
        """It stands still; the world does not."""
        self.stopped: list[asyncio.Handle] = []
        """Callbacks that came too late. Only `bury` runs them, so that tasks can be taken apart in order."""
        self._waiting: list[asyncio.Handle] = []
        """Callbacks that came while it was suspended."""
        self._on_death: list[Callable[[], None]] = []
        self._due_at_step: int | None = None
        self._due: Callable[[], None] = self.kill

    def __repr__(self) -> str:
        return f"<{self.name}{'' if self.alive else ', dead'}{', suspended' if self.suspended else ''}>"

    def check(self) -> None:
        """What every port does first: the dead have no effects."""
        if not self.alive:
            raise ProcessKilled(f"{self.name} is dead")

    def on_death(self, callback: Callable[[], None]) -> None:
        """Ask the world (disk, network, supervisor) to do something at the moment of death."""
        self._on_death.append(callback)

    def kill_after(self, steps: int) -> None:
        """Die in place of the callback that many callbacks from now."""
        self._due_at_step, self._due = self.steps + steps, self.kill

    def suspend_after(self, steps: int) -> None:
        """Stand still before the callback that many callbacks from now."""
        self._due_at_step, self._due = self.steps + steps, self.suspend

    def spare(self) -> None:
        """Forget `kill_after` and `suspend_after`."""
        self._due_at_step = None

    def suspend(self) -> None:
        """Stand still from the next callback on, until `resume`."""
        self.suspended = True

    def resume(self, loop: VirtualLoop) -> None:
        """Go on where it stood."""
        self.suspended = False
        waiting, self._waiting = self._waiting, []
        loop.run_next(waiting)

    def die_here(self) -> None:
        """Die in the middle of a callback: nothing behind this call happens."""
        self.kill()
        raise ProcessKilled(f"{self.name} dies here")

    def exit(self) -> None:
        """End by itself; what it left behind does not run."""
        self.exited = self.alive
        self.kill()

    def kill(self) -> None:
        """Die now: nothing of this process runs any more once the present callback reaches a port or its end."""
        if self.alive:
            self.alive = False
            for callback in self._on_death:
                callback()

    def lets_run(self, handle: asyncio.Handle) -> bool:
        """Whether a callback runs now. Else it waits for `resume`, or comes too late."""
        if self.alive and self.steps == self._due_at_step:
            self._due_at_step = None
            self._due()
        if not self.alive:
            self.stopped.append(handle)
            return False
        if self.suspended:
            self._waiting.append(handle)
            return False
        self.steps += 1
        if self.inspect is not None and not self.steps & _INSPECTION_MASK:
            self.inspect()
        return True

    def take_waiting(self) -> list[asyncio.Handle]:
        """What it will never run any more."""
        handles, self._waiting, self.stopped = self.stopped + self._waiting, [], []
        return handles


class _Handle(asyncio.Handle):
    """A callback of a process."""

    __slots__ = ("process",)
    process: Process | None

    def _run(self) -> None:
        if self.process is None or self.process.lets_run(self):
            super()._run()  # type: ignore[misc]


class _TimerHandle(asyncio.TimerHandle):
    """A timer of a process."""

    __slots__ = ("process",)
    process: Process | None

    def _run(self) -> None:
        if self.process is None or self.process.lets_run(self):
            super()._run()  # type: ignore[misc]


_current: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _VirtualSelector(selectors.SelectSelector):
    """Lets the loop register its self-pipe, and never looks at it: waiting advances the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = _EPOCH_S

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("nothing is ready, and no timer is set")
        if timeout > 0:
            self.now_s += timeout
        return []


class Listens(Protocol):
    """The network that `create_server` and `create_connection` go to."""

    def listen(self, process: Process, factory: Any, port: int) -> Any:
        """Listen on a port; 0: any."""

    async def dial(self, process: Process, factory: Any, port: int) -> tuple[Any, Any]:
        """Connect a process to another one: transport and protocol. Raises OSError."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        self._processes: list[Process] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._tasks_to_prune_at = 1000
        self._burying = False
        self.network: Listens | None = None
        self.thread_s: Callable[[], float] | None = None
        """How long what a process does in a thread of its own takes; None: that is not simulated."""
        self.problems: list[str] = []
        """What asyncio reported as unhandled. A simulation that ends with any has failed."""
        super().__init__(self._virtual)
        self.set_task_factory(self._new_task)
        self.set_exception_handler(self._on_problem)

    def time(self) -> float:
        return self._virtual.now_s

    # ---- processes

    def spawn(self, process: Process, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a coroutine in a process. Its tasks, timers and callbacks inherit the process."""
        if process not in self._processes:
            self._processes.append(process)
        return self.create_task(coroutine, context=context_of(process))

    def spawn_outside(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a coroutine that belongs to the world: it goes on when whoever started it is dead."""
        return self.create_task(coroutine, context=context_of(None))

    # These two do what asyncio's do, and know the process; more than half of a simulation's time goes through them.

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        handle.process = self._process_of(context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _TimerHandle(when, callback, args, self, context)
        timer.process = self._process_of(context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def run_next(self, handles: Sequence[asyncio.Handle]) -> None:
        """Run callbacks in this order; those that were cancelled meanwhile are left out."""
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def _process_of(self, context: contextvars.Context | None) -> Process | None:
        if self._burying:
            return None
        return _current.get() if context is None else context.get(_current)

    def bury(self) -> None:
        """Take every task apart that is left. Ports of dead processes refuse, so nothing that this runs has effects."""
        self._burying = True
        for process in self._processes:
            process.alive = process.suspended = False
        for _ in range(_MAX_BURIAL_TURNS):
            for process in self._processes:
                for handle in process.take_waiting():
                    self.call_soon(handle._callback, *handle._args)  # type: ignore[attr-defined]
            self._tasks = {task for task in self._tasks if not task.done()}
            if not self._tasks:
                return
            for task in self._tasks:
                task.cancel()
            self.call_soon(self.stop)
            self.run_forever()
        raise AssertionError(f"tasks that cannot be cancelled: {self._tasks}")

    def _new_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, *, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, context=context)
        # Held here, or the collector would throw GeneratorExit into the tasks of the dead, which runs their `finally`.
        self._tasks.add(task)
        if len(self._tasks) > self._tasks_to_prune_at:
            self._tasks = {task for task in self._tasks if not task.done()}
            self._tasks_to_prune_at = 2 * len(self._tasks) + 1000
        return task

    def _on_problem(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self._burying and not isinstance(context.get("exception"), ProcessKilled):
            error = context.get("exception")
            trace = "" if error is None else "".join(traceback.format_exception(error))
            self.problems.append(f"{context['message']}: {error!r}\n{trace}")

    # ---- sockets

    async def create_server(
        self, protocol_factory: Any, host: Any = None, port: Any = None, *, sock: Any = None, **options: Any
    ) -> Any:
        """A listener in the simulated network, of the process that asks."""
        process = _current.get()
        if self.network is None or process is None:
            raise NotSimulated("there is no network here")
        return self.network.listen(process, protocol_factory, port if sock is None else sock.getsockname()[1])

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> tuple[Any, Any]:
        """A connection through the simulated network, of the process that asks."""
        process = _current.get()
        if self.network is None or process is None:
            raise NotSimulated("there is no network here")
        return await self.network.dial(process, protocol_factory, port)

    # ---- threads

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        """What runs in a thread happens at one moment, somewhat later, if the process lives then and does not stand still."""
        if self.thread_s is None or _current.get() is None:
            raise NotSimulated(f"{func} was to run in a thread")
        done: asyncio.Future[Any] = self.create_future()

        def work() -> None:
            if done.cancelled():
                return
            try:
                done.set_result(func(*args))
            except Exception as error:
                done.set_exception(error)

        self.call_later(self.thread_s(), work)
        return done

    # ---- what has no virtual counterpart

    def call_soon_threadsafe(
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        # asyncio itself uses it on the loop's own thread, to close abandoned async generators.
        if self.is_running() and threading.get_ident() != self._thread_id:  # type: ignore[attr-defined]
            raise NotSimulated("a thread called the loop")
        return self.call_soon(callback, *args, context=context)


def current_process() -> Process | None:
    """The process that runs now; None: the world."""
    return _current.get()


def context_of(process: Process | None) -> contextvars.Context:
    """A context for what a process runs; None: what the world does, whoever dies."""
    context = contextvars.copy_context()
    context.run(_current.set, process)
    return context
