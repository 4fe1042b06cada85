"""Consumer groups: what a commit costs the broker, and how long a rebalance of many members takes.

Always true:
- Requests are sent over raw sockets by one thread, each connection with one request under way, as consumers commit.
- Commits are durable in a file WAL when they are answered. Every error code is looked at.
- The rebalance is timed from the first JoinGroup to the last SyncGroup response; the leader assigns by `range`, at no cost of ours.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.broker import Broker, BrokerFailed, running_broker
from bench.cpu import cpu_seconds
from bench.load import connect
from protocol.apis import api_named, decode_response, encode_request
from protocol.frames import parse_response_header
from protocol.messages.find_coordinator import FindCoordinatorRequest
from protocol.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from protocol.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from protocol.messages.sync_group import SyncGroupRequest, SyncGroupRequestAssignment

__all__ = ["run"]

_TOPIC = "groups"
_PARTITIONS = 1_000
_MEMBERS = 100
_COMMIT_CONNECTIONS = 50
_SETTINGS = {"group.initial.rebalance.delay.ms": 500, "offsets.topic.num.partitions": 50}
_ROUNDS = 5
_VERSIONS = {"JoinGroup": 9, "SyncGroup": 5}


class _Client:
    """One connection with one request under way."""

    def __init__(self, broker: Broker) -> None:
        self.sock: socket.socket = connect(broker.bootstrap)
        self._asked = (0, 0)
        self._data = bytearray()

    def send(self, name: str, version: int, request: Any) -> None:
        key = api_named(name).key
        self._asked = (key, version)
        self.sock.sendall(b"".join(encode_request(key, version, 1, "bench", request)))

    def received(self) -> bytes | None:
        """The whole response, once it is there; call it when the socket has something."""
        self._data += self.sock.recv(1 << 20)
        if len(self._data) < 4 or len(self._data) < 4 + struct.unpack_from(">i", self._data)[0]:
            return None
        frame = bytes(self._data[4:])
        self._data.clear()
        return frame

    def decoded(self, frame: bytes) -> Any:
        key, version = self._asked
        _, position = parse_response_header(key, version, frame)
        return decode_response(key, version, frame, position)

    def call(self, name: str, version: int, request: Any) -> Any:
        self.send(name, version, request)
        while (frame := self.received()) is None:
            pass
        return self.decoded(frame)


def run(work_dir: Path, seconds: float) -> None:
    """Measure both; prints a line each."""
    with running_broker(work_dir / "groups", _SETTINGS) as broker:
        broker.create_topic(_TOPIC, _PARTITIONS)
        clients = [_Client(broker) for _ in range(_MEMBERS)]
        found = clients[0].call("FindCoordinator", 4, FindCoordinatorRequest(coordinator_keys=["g"]))
        if found.coordinators[0].error_code:
            raise BrokerFailed(f"there is no coordinator: {found}")
        broker.wait_until_quiet(1.0)
        many = clients[:_COMMIT_CONNECTIONS]
        for offsets, groups in ((1, len(many)), (10, len(many)), (10, 1)):
            print(_commits(broker, many, offsets, groups, seconds), flush=True)
        print(_commits(broker, clients[:1], 1, 1, seconds), flush=True)
        print(_rebalances(broker, clients), flush=True)
        for client in clients:
            client.sock.close()


def _commits(broker: Broker, clients: list[_Client], offsets: int, groups: int, seconds: float) -> str:
    def request(number: int) -> OffsetCommitRequest:
        partitions = [
            OffsetCommitRequestPartition(partition_index=(number * offsets + at) % _PARTITIONS, committed_offset=at)
            for at in range(offsets)
        ]
        return OffsetCommitRequest(
            group_id=f"commits-{number % groups}", topics=[OffsetCommitRequestTopic(name=_TOPIC, partitions=partitions)]
        )

    for number, client in enumerate(clients):
        answer = client.call("OffsetCommit", 8, request(number))
        if any(partition.error_code for topic in answer.topics for partition in topic.partitions):
            raise BrokerFailed(f"a commit was refused: {answer}")
    key = api_named("OffsetCommit").key
    frames = {
        client: b"".join(encode_request(key, 8, 1, "bench", request(number))) for number, client in enumerate(clients)
    }
    good: bytes | None = None
    count = 0
    latencies: list[float] = []
    began, cpu = time.perf_counter(), cpu_seconds(broker.pid)
    sent = dict.fromkeys(clients, began)
    for client in clients:
        client.sock.sendall(frames[client])

    def answered(client: _Client, frame: bytes) -> bool:
        nonlocal good, count
        now = time.perf_counter()
        if good is None or frame != good:
            answer = client.decoded(frame)
            if any(partition.error_code for topic in answer.topics for partition in topic.partitions):
                raise BrokerFailed(f"a commit was refused: {answer}")
            good = frame
        count += 1
        latencies.append(now - sent[client])
        if now - began >= seconds:
            return False
        sent[client] = now
        client.sock.sendall(frames[client])
        return True

    _drive(clients, answered)
    elapsed_s, used_s = time.perf_counter() - began, cpu_seconds(broker.pid) - cpu
    latencies.sort()
    return (
        f"commits, {offsets} per request, {len(clients)} connections, {groups} groups: {count / elapsed_s:,.0f} requests/s, "
        f"{used_s / count * 1e6:.1f} us of broker CPU each, p50 {latencies[count // 2] * 1e3:.2f} ms, "
        f"p99 {latencies[count * 99 // 100] * 1e3:.2f} ms"
    )


def _drive(clients: list[_Client], answered: Callable[[_Client, bytes], bool]) -> None:
    """Hand each response to `answered` until it has said False once for each client."""
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.sock, selectors.EVENT_READ, client)
        left = len(clients)
        while left:
            for key, _ in selector.select():
                client: _Client = key.data
                frame = client.received()
                if frame is not None and not answered(client, frame):
                    selector.unregister(client.sock)
                    left -= 1


def _rebalances(broker: Broker, clients: list[_Client]) -> str:
    """All members join again and again; each time with another subscription, so that nobody is answered at once."""
    ids = [answer.member_id for answer in _all(clients, "JoinGroup", [_join("", 0)] * len(clients))]  # KIP-394
    _rebalance(clients, ids, 0)  # waits for the initial delay
    times: list[float] = []
    cpu = cpu_seconds(broker.pid)
    for number in range(1, _ROUNDS + 1):
        began = time.perf_counter()
        _rebalance(clients, ids, number)
        times.append(time.perf_counter() - began)
    used_s = (cpu_seconds(broker.pid) - cpu) / _ROUNDS
    times.sort()
    return (
        f"rebalance of {len(clients)} members over {_PARTITIONS} partitions: {times[_ROUNDS // 2] * 1e3:.1f} ms in the middle, "
        f"{times[-1] * 1e3:.1f} at most, {used_s * 1e3:.1f} ms of broker CPU"
    )


def _rebalance(clients: list[_Client], ids: list[str], number: int) -> None:
    joined = _all(clients, "JoinGroup", [_join(member_id, number) for member_id in ids])
    [leader] = [at for at, answer in enumerate(joined) if answer.members]
    members = [member.member_id for member in joined[leader].members]
    if len(members) != len(clients):
        raise BrokerFailed(f"{len(members)} of {len(clients)} members joined")
    share = _PARTITIONS // len(members)
    shares = [
        SyncGroupRequestAssignment(member_id=member_id, assignment=_assignment(range(at * share, (at + 1) * share)))
        for at, member_id in enumerate(members)
    ]
    syncs = [
        SyncGroupRequest(
            group_id="rebalance",
            generation_id=joined[leader].generation_id,
            member_id=member_id,
            protocol_type="consumer",
            protocol_name="range",
            assignments=shares if at == leader else (),
        )
        for at, member_id in enumerate(ids)
    ]
    synced = _all(clients, "SyncGroup", syncs)
    if any(answer.error_code or not answer.assignment for answer in synced):
        raise BrokerFailed("a member got no assignment")


def _all(clients: list[_Client], name: str, requests: Sequence[Any]) -> list[Any]:
    """Send each client's request at once; the answers, in the order of the clients."""
    for client, request in zip(clients, requests, strict=True):
        client.send(name, _VERSIONS[name], request)
    answers: dict[_Client, Any] = {}

    def answered(client: _Client, frame: bytes) -> bool:
        answers[client] = client.decoded(frame)
        return False

    _drive(clients, answered)
    return [answers[client] for client in clients]


def _join(member_id: str, number: int) -> JoinGroupRequest:
    name = _TOPIC.encode()
    subscription = struct.pack(">hih", 0, 1, len(name)) + name + struct.pack(">i", 4) + struct.pack(">i", number)
    return JoinGroupRequest(
        group_id="rebalance",
        session_timeout_ms=45_000,
        rebalance_timeout_ms=300_000,
        member_id=member_id,
        protocol_type="consumer",
        protocols=[JoinGroupRequestProtocol(name="range", metadata=subscription)],
    )


def _assignment(partitions: range) -> bytes:
    name = _TOPIC.encode()
    numbers = struct.pack(f">i{len(partitions)}i", len(partitions), *partitions)
    return struct.pack(">hih", 0, 1, len(name)) + name + numbers + struct.pack(">i", -1)
