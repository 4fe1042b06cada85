"""What a consumer's metadata says of its subscription (`ConsumerProtocolSubscription`): the topics, nothing else is ours. And,
for tools, what its leader gave it (`ConsumerProtocolAssignment`).

Always true: what cannot be read is not known; nobody is refused for it, since the broker is not who it is meant for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

__all__ = ["assigned_partitions", "subscribed_topics"]

_HEAD = struct.Struct(">hi")
_SIZE = struct.Struct(">h")
_COUNT = struct.Struct(">i")


def subscribed_topics(subscriptions: Iterable[bytes]) -> frozenset[str] | None:
    """The topics of all members together, None where one of them cannot be read."""
    topics: set[str] = set()
    try:
        for data in subscriptions:
            _, count = _HEAD.unpack_from(data)
            position = _HEAD.size
            for _ in range(count):
                (size,) = _SIZE.unpack_from(data, position)
                position += _SIZE.size
                if size < 0 or position + size > len(data):
                    return None
                topics.add(data[position : position + size].decode())
                position += size
    except (struct.error, UnicodeDecodeError):
        return None
    return frozenset(topics)


def assigned_partitions(assignment: bytes) -> list[tuple[str, int]] | None:
    """The partitions of a member (`ConsumerProtocolAssignment`), None where it cannot be read."""
    found: list[tuple[str, int]] = []
    try:
        if not assignment:
            return found
        _, count = _HEAD.unpack_from(assignment)
        position = _HEAD.size
        for _ in range(count):
            (size,) = _SIZE.unpack_from(assignment, position)
            position += _SIZE.size
            if size < 0 or position + size > len(assignment):
                return None
            topic = assignment[position : position + size].decode()
            position += size
            (partitions,) = _COUNT.unpack_from(assignment, position)
            position += _COUNT.size
            for _ in range(partitions):
                found.append((topic, _COUNT.unpack_from(assignment, position)[0]))
                position += _COUNT.size
    except (struct.error, UnicodeDecodeError):
        return None
    return found
