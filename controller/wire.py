"""Commands and their outcomes as bytes: what a node that does not lead says to the one that does, and hears from it. Pure.

Always true:
- Every command of the state machine has a place here; a test compares the tables. But for `RestoreTopics`, which holds a whole state: the
  tool that gives it takes the office itself.
- An outcome is a reply or an error. An error comes back as the same class with the same text, so a caller cannot tell where
  its command was decided; one whose class is unknown here comes back as `ControllerError`.
- What does not fit its type is refused with `Malformed`. Nothing is executed by decoding.

Both are MessagePack (msgspec): a command as `[name, fields]`, an outcome as `[index, "", reply]` or `[index, class, text]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from controller.allotment import AllotNode
from controller.commands import Command
from controller.errors import (
    ConfigsChanged,
    ControllerError,
    InvalidPartitionCount,
    InvariantViolated,
    MetadataCorrupt,
    NodeIdTaken,
    NodeRefused,
    NoNodes,
    StreamNotDrained,
    TooManyPartitions,
    TopicExists,
    UnknownNode,
    UnknownTopic,
    UnsupportedMetadata,
)
from controller.nodes import (
    ConfigureBroker,
    DeclareDead,
    DescribeNode,
    DrainNode,
    LeaveCluster,
    NodeRegistration,
    RaiseMetadataVersion,
    RegisterNode,
    SuspectNode,
    TrustNode,
    UnregisterNode,
)
from controller.objects import AllocateObjectIds, AllocateProducerIds, Commit, ExpireObjects, ForgetObjects
from controller.state import FormatCluster
from controller.streams import (
    AbandonWal,
    CloseStreams,
    GiveBackWal,
    OpenStreams,
    ReassignStreams,
    RecoverWal,
    TrimStreams,
)
from controller.topics import AddPartitions, ConfigureTopic, CreateTopics, DeleteTopics
from s3stream.errors import MetadataUnavailable, NodeFenced, ObjectExpired, SourcesChanged
from s3stream.metadata import CommitResult, ObjectId, OpenedStream, StreamId

__all__ = [
    "COMMANDS",
    "Malformed",
    "Outcome",
    "decode_command",
    "decode_outcome",
    "encode_command",
    "encode_outcome",
]


class Malformed(ControllerError):
    """A message between nodes that this node does not understand; is the other one of another version?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a command, and the index of the log up to which the answerer had applied it by then."""

    index: int
    result: Any
    """The reply, or an exception."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """How a command's reply becomes plain values, and what type they have."""

    plain: type | Any
    pack: Callable[[Any], Any] = lambda reply: reply
    unpack: Callable[[Any], Any] = lambda plain: plain


_Failure = tuple[str, str]
"""Class and text of an exception."""

_ERRORS: Final[Mapping[str, type[Exception]]] = {
    error.__name__: error
    for error in (
        ConfigsChanged,
        InvalidPartitionCount,
        InvariantViolated,
        MetadataCorrupt,
        MetadataUnavailable,
        NoNodes,
        NodeFenced,
        NodeIdTaken,
        NodeRefused,
        ObjectExpired,
        SourcesChanged,
        StreamNotDrained,
        TooManyPartitions,
        TopicExists,
        UnknownNode,
        UnknownTopic,
        UnsupportedMetadata,
    )
}
"""What deciding can end with."""


def _failure(error: Exception) -> _Failure:
    return type(error).__name__, error.problem if isinstance(error, MetadataCorrupt) else str(error)


def _error(failure: _Failure) -> Exception:
    name, text = failure
    return _ERRORS[name](text) if name in _ERRORS else ControllerError(f"{name}: {text}")


def _range(plain: tuple[int, int]) -> range:
    return range(*plain)


_NOTHING = _Reply(None)
_YES_OR_NO = _Reply(bool)
_RANGE = _Reply(tuple[int, int], lambda block: (block.start, block.stop), _range)
_STREAMS = _Reply(tuple[OpenedStream, ...])
_EACH_TOPIC = _Reply(
    dict[bytes, _Failure | None],
    lambda reply: {topic_id: None if error is None else _failure(error) for topic_id, error in reply.items()},
    lambda plain: {topic_id: None if failure is None else _error(failure) for topic_id, failure in plain.items()},
)
_MADE_TOPICS = _Reply(
    dict[str, tuple[bytes, str, str]],
    lambda reply: {
        name: (b"", *_failure(made)) if isinstance(made, Exception) else (made, "", "") for name, made in reply.items()
    },
    lambda plain: {name: topic_id or _error((kind, text)) for name, (topic_id, kind, text) in plain.items()},
)

COMMANDS: Final[Mapping[type[Command[Any]], _Reply]] = {
    FormatCluster: _NOTHING,
    RaiseMetadataVersion: _NOTHING,
    RegisterNode: _Reply(NodeRegistration),
    AllotNode: _Reply(NodeRegistration),
    DescribeNode: _NOTHING,
    SuspectNode: _YES_OR_NO,
    TrustNode: _NOTHING,
    DeclareDead: _YES_OR_NO,
    LeaveCluster: _YES_OR_NO,
    UnregisterNode: _NOTHING,
    DrainNode: _NOTHING,
    ConfigureBroker: _NOTHING,
    CreateTopics: _MADE_TOPICS,
    DeleteTopics: _EACH_TOPIC,
    AddPartitions: _NOTHING,
    ConfigureTopic: _NOTHING,
    OpenStreams: _STREAMS,
    CloseStreams: _NOTHING,
    TrimStreams: _NOTHING,
    ReassignStreams: _NOTHING,
    RecoverWal: _STREAMS,
    GiveBackWal: _YES_OR_NO,
    AbandonWal: _Reply(dict[StreamId, tuple[int, int]]),
    Commit: _Reply(CommitResult),
    ExpireObjects: _Reply(tuple[ObjectId, ...]),
    ForgetObjects: _NOTHING,
    AllocateObjectIds: _RANGE,
    AllocateProducerIds: _RANGE,
}

_BY_NAME: Final[Mapping[str, type[Command[Any]]]] = {command.__name__: command for command in COMMANDS}

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode_command(command: Command[Any]) -> bytes:
    return msgspec.msgpack.encode((type(command).__name__, command))


def decode_command(data: bytes) -> Command[Any]:
    """Decode a command. Raises Malformed."""
    try:
        name, fields = msgspec.msgpack.decode(data, type=tuple[str, msgspec.Raw])
        kind = _BY_NAME.get(name)
        if kind is None:
            raise Malformed(f"a command {name!r} is not known here: are all nodes of the same version?")
        command: Command[Any] = msgspec.msgpack.decode(fields, type=kind)
        return command
    except _UNREADABLE as error:
        raise Malformed(f"not a command: {error}") from error


def encode_outcome(kind: type[Command[Any]], outcome: Outcome) -> bytes:
    result = outcome.result
    if isinstance(result, Exception):
        return msgspec.msgpack.encode((outcome.index, *_failure(result)))
    return msgspec.msgpack.encode((outcome.index, "", COMMANDS[kind].pack(result)))


def decode_outcome(kind: type[Command[Any]], data: bytes) -> Outcome:
    """Decode what became of a command of this kind. Raises Malformed."""
    reply = COMMANDS[kind]
    try:
        index, name, rest = msgspec.msgpack.decode(data, type=tuple[int, str, msgspec.Raw])
        if name:
            return Outcome(index=index, result=_error((name, msgspec.msgpack.decode(rest, type=str))))
        return Outcome(index=index, result=reply.unpack(msgspec.msgpack.decode(rest, type=reply.plain)))
    except _UNREADABLE as error:
        raise Malformed(f"not the outcome of {kind.__name__}: {error}") from error
