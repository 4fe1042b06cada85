"""The records of `__consumer_offsets`, in Kafka's own schemas, so that Kafka's tools and other brokers can read them.

    key    int16 version 0 or 1: group, topic, partition      value: a committed offset    (OffsetCommitKey, OffsetCommitValue)
           int16 version 2: group                             value: the group as a whole  (GroupMetadataKey, GroupMetadataValue)

Always true here:
- a null value is a tombstone: the key is gone;
- what is written are the versions that Kafka 4 writes for classic groups: key 1 and 2, value 3, and value 1 for an offset with an
  expiry of its own (OffsetCommit before version 5). Values 0 to 4 are read; version 4 is flexible, its unknown tags are skipped;
- a key of another version is `None`: later brokers write more kinds (KIP-848), which are not ours to judge;
- reading raises nothing but `Malformed`.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from protocol.errors import Malformed

__all__ = [
    "GroupValue",
    "MemberValue",
    "OffsetKey",
    "OffsetValue",
    "decode_group_value",
    "decode_key",
    "decode_offset_value",
    "encode_group_key",
    "encode_group_value",
    "encode_offset_key",
    "encode_offset_value",
    "is_known_key",
]

_OFFSET_KEY_VERSION = 1
_GROUP_KEY_VERSION = 2
_VALUE_VERSION = 3
_EXPIRING_OFFSET_VERSION = 1
_FLEXIBLE_VALUE_VERSION = 4

_INT16 = struct.Struct(">h")
_INT32 = struct.Struct(">i")
_INT64 = struct.Struct(">q")
_KNOWN_KEY_VERSIONS = {_INT16.pack(version) for version in (0, _OFFSET_KEY_VERSION, _GROUP_KEY_VERSION)}
_KEY_HEAD = struct.Struct(">hh")
_OFFSET_HEAD = struct.Struct(">hqih")  # version, offset, leader epoch, size of the metadata
_EXPIRING_HEAD = struct.Struct(">hqh")
_TIMES = struct.Struct(">qq")


class OffsetKey(NamedTuple):
    """Whose offset."""

    group_id: str
    topic: str
    partition: int


class OffsetValue(NamedTuple):
    """A committed offset."""

    offset: int
    leader_epoch: int = -1
    metadata: str = ""
    commit_timestamp_ms: int = -1
    expire_timestamp_ms: int = -1
    """-1: `offsets.retention.minutes` applies."""


class MemberValue(NamedTuple):
    """One member as of the last completed rebalance."""

    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    subscription: bytes
    assignment: bytes


class GroupValue(NamedTuple):
    """A group as of the last completed rebalance; without members it is empty."""

    protocol_type: str
    generation_id: int
    protocol_name: str | None
    leader: str | None
    state_timestamp_ms: int
    members: tuple[MemberValue, ...]


def encode_offset_key(group_id: str, topic: str, partition: int) -> bytes:
    """Key of a committed offset."""
    group, name = group_id.encode(), topic.encode()
    return b"%b%b%b%b%b" % (
        _KEY_HEAD.pack(_OFFSET_KEY_VERSION, len(group)),
        group,
        _INT16.pack(len(name)),
        name,
        _INT32.pack(partition),
    )


def encode_group_key(group_id: str) -> bytes:
    """Key of a group's metadata."""
    group = group_id.encode()
    return _KEY_HEAD.pack(_GROUP_KEY_VERSION, len(group)) + group


def encode_offset_value(value: OffsetValue) -> bytes:
    """A committed offset."""
    metadata = value.metadata.encode()
    if value.expire_timestamp_ms >= 0:
        head = _EXPIRING_HEAD.pack(_EXPIRING_OFFSET_VERSION, value.offset, len(metadata))
        return head + metadata + _TIMES.pack(value.commit_timestamp_ms, value.expire_timestamp_ms)
    head = _OFFSET_HEAD.pack(_VALUE_VERSION, value.offset, value.leader_epoch, len(metadata))
    return head + metadata + _INT64.pack(value.commit_timestamp_ms)


def encode_group_value(value: GroupValue) -> bytes:
    """A whole group."""
    out = bytearray(_INT16.pack(_VALUE_VERSION))
    _put_string(out, value.protocol_type)
    out += _INT32.pack(value.generation_id)
    _put_string(out, value.protocol_name)
    _put_string(out, value.leader)
    out += _INT64.pack(value.state_timestamp_ms)
    out += _INT32.pack(len(value.members))
    for member in value.members:
        _put_string(out, member.member_id)
        _put_string(out, member.group_instance_id)
        _put_string(out, member.client_id)
        _put_string(out, member.client_host)
        out += _INT32.pack(member.rebalance_timeout_ms)
        out += _INT32.pack(member.session_timeout_ms)
        for data in (member.subscription, member.assignment):
            out += _INT32.pack(len(data))
            out += data
    return bytes(out)


def is_known_key(key: bytes) -> bool:
    """Whether a key is of a kind that `decode_key` reads."""
    return key[:2] in _KNOWN_KEY_VERSIONS


def decode_key(key: bytes) -> OffsetKey | str | None:
    """The key of an offset, the id of a group, or None for a kind that is not known here."""
    reader = _Reader(key, "key of a group record")
    version = reader.int16()
    if version in (0, _OFFSET_KEY_VERSION):
        found = OffsetKey(reader.string(), reader.string(), reader.int32())
        reader.end()
        return found
    if version == _GROUP_KEY_VERSION:
        group_id = reader.string()
        reader.end()
        return group_id
    return None


def decode_offset_value(data: bytes) -> OffsetValue:
    """A committed offset, of any version up to 4."""
    reader = _Reader(data, "committed offset")
    version = reader.version()
    offset = reader.int64()
    leader_epoch = reader.int32() if version >= 3 else -1
    metadata = reader.string()
    commit_timestamp_ms = reader.int64()
    expire_timestamp_ms = reader.int64() if version == 1 else -1
    reader.tags()
    reader.end()
    return OffsetValue(offset, leader_epoch, metadata, commit_timestamp_ms, expire_timestamp_ms)


def decode_group_value(data: bytes) -> GroupValue:
    """A whole group, of any version up to 4."""
    reader = _Reader(data, "group metadata")
    version = reader.version()
    protocol_type = reader.string()
    generation_id = reader.int32()
    protocol_name = reader.nullable_string()
    leader = reader.nullable_string()
    state_timestamp_ms = reader.int64() if version >= 2 else -1
    members = []
    for _ in range(reader.count()):
        member_id = reader.string()
        group_instance_id = reader.nullable_string() if version >= 3 else None
        client_id = reader.string()
        client_host = reader.string()
        rebalance_timeout_ms = reader.int32() if version >= 1 else -1
        session_timeout_ms = reader.int32()
        if rebalance_timeout_ms < 0:
            rebalance_timeout_ms = session_timeout_ms  # as before KIP-62
        subscription, assignment = reader.data(), reader.data()
        reader.tags()
        members.append(
            MemberValue(
                member_id,
                group_instance_id,
                client_id,
                client_host,
                rebalance_timeout_ms,
                session_timeout_ms,
                subscription,
                assignment,
            )
        )
    reader.tags()
    reader.end()
    return GroupValue(protocol_type, generation_id, protocol_name, leader, state_timestamp_ms, tuple(members))


def _put_string(out: bytearray, text: str | None) -> None:
    if text is None:
        out += _INT16.pack(-1)
    else:
        data = text.encode()
        out += _INT16.pack(len(data))
        out += data


class _Reader:
    """Reads the few types that these records have; `flexible` ones (KIP-482) from version 4 on."""

    __slots__ = ("_data", "_flexible", "_position", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._position = 0
        self._what = what
        self._flexible = False

    def version(self) -> int:
        version = self.int16()
        if not 0 <= version <= _FLEXIBLE_VALUE_VERSION:
            raise Malformed(f"{self._what} of version {version}; up to {_FLEXIBLE_VALUE_VERSION} is known here")
        self._flexible = version >= _FLEXIBLE_VALUE_VERSION
        return version

    def int16(self) -> int:
        return self._unpack(_INT16)

    def int32(self) -> int:
        return self._unpack(_INT32)

    def int64(self) -> int:
        return self._unpack(_INT64)

    def nullable_string(self) -> str | None:
        size = self._varint() - 1 if self._flexible else self.int16()
        if size < 0:
            return None
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"{self._what}: {error}") from error

    def string(self) -> str:
        text = self.nullable_string()
        if text is None:
            raise Malformed(f"{self._what}: null where a string is needed")
        return text

    def data(self) -> bytes:
        return self._take(self._varint() - 1 if self._flexible else self.int32())

    def count(self) -> int:
        """Of an array; a null one is refused by what follows it."""
        count = self._varint() - 1 if self._flexible else self.int32()
        if not 0 <= count <= len(self._data):
            raise Malformed(f"{self._what} claims {count} elements")
        return count

    def tags(self) -> None:
        if self._flexible:
            for _ in range(self._varint()):
                self._varint()
                self._take(self._varint())

    def end(self) -> None:
        if self._position != len(self._data):
            raise Malformed(f"{self._what}: {len(self._data) - self._position} bytes too many")

    def _unpack(self, kind: struct.Struct) -> int:
        try:
            (value,) = kind.unpack_from(self._data, self._position)
        except struct.error as error:
            raise Malformed(f"{self._what} is cut short") from error
        self._position += kind.size
        number: int = value
        return number

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            if self._position >= len(self._data):
                raise Malformed(f"{self._what} is cut short")
            byte = self._data[self._position]
            self._position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise Malformed(f"{self._what}: a number of more than 35 bits")

    def _take(self, size: int) -> bytes:
        end = self._position + size
        if size < 0 or end > len(self._data):
            raise Malformed(f"{self._what}: {size} bytes where {len(self._data) - self._position} are left")
        taken = self._data[self._position : end]
        self._position = end
        return taken
