"""The simulated network keeps bytes in order, cuts them as it likes, and tells nobody what a reset lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from tests.sim.loop import Process, VirtualLoop
from tests.sim.network import SEND_BUFFER_BYTES, ClientConnection, ConnectionReset, Network, NetworkFaults

PORT = 9092


class Echo(asyncio.BufferedProtocol):
    """Answers each length-prefixed request with itself."""

    def __init__(self) -> None:
        self.buffer = bytearray(100_000)
        self.filled = 0
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=0)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self.filled += nbytes
        while self.filled >= 4 and self.filled >= (end := 4 + int.from_bytes(self.buffer[:4], "big")):
            self.transport.write(bytes(self.buffer[:end]))
            self.buffer[: self.filled - end] = self.buffer[end : self.filled]
            self.filled -= end

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.bury()
    loop.close()


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def serve(loop: VirtualLoop, faults: NetworkFaults, protocols: list[Echo]) -> tuple[Network, Process]:
    network = loop.network = Network(loop, random.Random(1), faults)
    process = Process("broker")

    def make() -> Echo:
        protocols.append(Echo())
        return protocols[-1]

    async def main() -> None:
        await loop.create_server(make, "localhost", PORT)

    loop.run_until_complete(loop.spawn(process, main()))
    return network, process


CALM = NetworkFaults(stall=0.0, reset=0.0)


def test_requests_are_answered_in_order_however_they_are_cut(loop: VirtualLoop) -> None:
    network, _ = serve(loop, NetworkFaults(stall=0.1, reset=0.0, max_piece_bytes=700), [])
    bodies = [random.Random(number).randbytes(number * 50) for number in range(60)]

    async def main() -> list[bytes]:
        connection = await network.connect(PORT)
        return list(await asyncio.gather(*(connection.ask(framed(body)) for body in bodies)))

    assert loop.run_until_complete(main()) == bodies


def test_a_port_that_nobody_serves_refuses(loop: VirtualLoop) -> None:
    network, _ = serve(loop, CALM, [])
    with pytest.raises(ConnectionReset):
        loop.run_until_complete(network.connect(PORT + 1))


def test_a_killed_broker_resets_its_connections(loop: VirtualLoop) -> None:
    network, process = serve(loop, CALM, [])

    async def main() -> None:
        connection = await network.connect(PORT)
        assert await connection.ask(framed(b"alive")) == b"alive"
        answer = connection.ask(framed(b"late"))
        process.kill()
        with pytest.raises(ConnectionReset):
            await answer
        with pytest.raises(ConnectionReset):
            await network.connect(PORT)

    loop.run_until_complete(main())


def test_resets_lose_answers_and_connecting_again_works(loop: VirtualLoop) -> None:
    network, _ = serve(loop, NetworkFaults(stall=0.0, reset=0.05), [])

    async def main() -> tuple[int, int]:
        answered = lost = 0
        connection: ClientConnection | None = None
        while answered < 100:
            try:
                if connection is None or connection.closed:
                    connection = await network.connect(PORT)
                await connection.ask(framed(b"request"))
                answered += 1
            except ConnectionReset:
                lost += 1
        return answered, lost

    answered, lost = loop.run_until_complete(main())
    assert answered == 100
    assert lost > 0


def test_a_slow_client_pauses_the_broker_and_gets_what_its_memory_holds_by_then(loop: VirtualLoop) -> None:
    protocols: list[Echo] = []
    network, process = serve(loop, CALM, protocols)
    body = bytearray(3 * SEND_BUFFER_BYTES)

    async def main() -> bytes:
        connection = await network.connect(PORT)
        answer = connection.ask(framed(b""))
        await answer
        protocol = protocols[0]
        second = connection.ask(framed(b""))  # answered below, by hand
        protocol.transport.pause_reading()

        async def respond() -> None:
            protocol.transport.writelines([len(body).to_bytes(4, "big"), memoryview(body)])
            assert protocol.paused
            body[-1] = 7  # the kernel has taken only the front

        await loop.spawn(process, respond())
        whole = await second
        await asyncio.sleep(1)
        assert not protocol.paused
        return whole

    whole = loop.run_until_complete(main())
    assert whole[-1] == 7
    assert not any(whole[:-1])
