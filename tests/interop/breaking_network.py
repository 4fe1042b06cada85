"""A network between clients and a broker that breaks."""

from __future__ import annotations

import asyncio
import struct
import threading
from contextlib import closing, suppress

from tests.crash.process import free_port

__all__ = ["BreakingNetwork"]


class BreakingNetwork:
    """Passes frames on between clients and one broker, and loses every so many-th answer to Produce with its connection.

    So the broker has what the client does not know to be written: the client must send it again, and the broker must see
    that it has it.
    """

    def __init__(self, *, lose_every: int, lose_at_most: int) -> None:
        self.port = free_port()
        self.lost = 0
        self._lose_every = lose_every
        self._lose_at_most = lose_at_most
        self._answers = 0
        self._broker_port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._thread.start()
        serving = asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result()

    def stop(self) -> None:
        async def end() -> None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        produces: set[int] = set()
        with closing(writer), suppress(ConnectionError):
            from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self._broker_port)
            with closing(to_broker):
                ways = [
                    asyncio.ensure_future(self._requests(reader, to_broker, produces)),
                    asyncio.ensure_future(self._responses(from_broker, writer, produces)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, produces: set[int]) -> None:
        while True:
            frame = await _frame(reader)
            api_key, _, correlation_id = struct.unpack_from(">hhi", frame, 4)
            if api_key == 0:
                produces.add(correlation_id)
            writer.write(frame)
            await writer.drain()

    async def _responses(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, produces: set[int]) -> None:
        while True:
            frame = await _frame(reader)
            [correlation_id] = struct.unpack_from(">i", frame, 4)
            if correlation_id in produces:
                produces.discard(correlation_id)
                self._answers += 1
                if self._answers % self._lose_every == 0 and self.lost < self._lose_at_most:
                    self.lost += 1
                    return
            writer.write(frame)
            await writer.drain()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size, "big"))
