"""What a broker may hold at most (I13), looked at between any two of its steps.

Not what the process takes, which a simulation cannot tell, but what each part accounts for, against the bound that it was given.
"""

from __future__ import annotations

from collections.abc import Iterator

from broker.node import Node
from s3stream.object_reader import ObjectReader
from s3stream.storage import MAX_PENDING
from tests.sim.scenario import Scenario

__all__ = ["over_bounds"]


def over_bounds(node: Node, scenario: Scenario) -> Iterator[str]:
    """Every bound that is broken now."""
    running = node.running
    server, storage, controller = running.server, running.storage, running.broker.controller
    reader = storage.reader
    assert isinstance(reader, ObjectReader)
    arena, wal, settings = storage.arena, storage.wal, storage.settings
    received = server.budget.size_bytes - server.budget.free_bytes
    for what, held, most in (
        ("the arena", arena.head - arena.tail, arena.size_bytes),
        ("the WAL", wal.end_offset - wal.trim_offset, wal.capacity_bytes),
        ("what waits for the WAL", len(storage._pending), MAX_PENDING + scenario.partitions),
        # A block that is larger than the whole cache may be read while nothing else is held.
        ("blocks of objects", reader.cache.used_bytes, max(settings.read.memory_bytes, scenario.largest_request_bytes)),
        # The last index is kept, however large.
        ("indexes of objects", reader.index_cache_bytes, settings.read.index_cache_bytes + _LARGEST_INDEX_BYTES),
        # One request at a time may overdraw, and what was read into the scratch buffer already is kept.
        ("requests that arrive", received, server.budget.size_bytes + 2 * scenario.largest_request_bytes),
        # Beyond twice the budget nothing but Produce starts; until then a response has its allowance, or one batch.
        ("responses", server.unsent_bytes, 2 * server.send_budget_bytes + _LARGEST_RESPONSE_BYTES),
        ("commands", controller.pending_count, controller.settings.max_pending_commands),
        ("fetch sessions", len(running.broker.fetch_sessions), node.settings.max_incremental_fetch_session_cache_slots),
        ("groups", running.broker.groups.memory_bytes, node.settings.memory_bytes // 16),
    ):
        if held > most:
            yield f"{what}: {held}, and {most} is the bound (I13)"


_LARGEST_INDEX_BYTES = 32 << 10
_LARGEST_RESPONSE_BYTES = 256 << 10
