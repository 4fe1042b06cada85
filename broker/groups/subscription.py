"""What a consumer's metadata says of its subscription (`ConsumerProtocolSubscription`): the topics, nothing else is ours.

Always true: what cannot be read is not known; nobody is refused for it, since the broker is not who it is meant for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

__all__ = ["subscribed_topics"]

_HEAD = struct.Struct(">hi")
_SIZE = struct.Struct(">h")


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
