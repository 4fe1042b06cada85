"""Commands and outcomes between nodes: every one there and back."""

from __future__ import annotations

from typing import Any

import pytest

from controller.allotment import AllotNode
from controller.commands import Command
from controller.errors import ControllerError, TopicExists, UnknownTopic
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
from controller.records import Unuploaded, UnuploadedStream
from controller.restoration import RestoreTopics
from controller.state import _HANDLERS, FormatCluster
from controller.streams import (
    AbandonWal,
    CloseStreams,
    GiveBackWal,
    OpenStreams,
    ReassignStreams,
    RecoverWal,
    TrimStreams,
)
from controller.topics import AddPartitions, ConfigureTopic, CreateTopics, DeleteTopics, NewTopic
from controller.wire import (
    COMMANDS,
    Malformed,
    Outcome,
    decode_command,
    decode_outcome,
    encode_command,
    encode_outcome,
)
from s3stream.errors import NodeFenced
from s3stream.metadata import CommitObjects, CommitResult, ObjectId, OpenedStream, SkipReason, StreamId
from tests.controller.machine import new_object, stream_range

ID = b"i" * 16


def test_every_command_of_the_state_machine_has_a_place() -> None:
    assert set(COMMANDS) == set(_HANDLERS) - {RestoreTopics}, "which a tool gives that takes the office itself"


COMMIT = CommitObjects(objects=(new_object(7, stream_range(1, 0, 10), stream_range(2, 5, 6)),), sources=(ObjectId(3),))
SAMPLES: list[Command[Any]] = [
    FormatCluster(cluster_id="c"),
    RaiseMetadataVersion(metadata_version=4),
    RegisterNode(node_id=1, wal_id="w", wal_epoch=2, address="PLAINTEXT://h:1", rack="r", lease_ms=4, at_ms=3),
    AllotNode(claim="c", reserved_max_id=9, wal_uri="s3://b", rack="r", lease_ms=4, controller_address="h:2", at_ms=3),
    DescribeNode(node_id=1, node_epoch=2, lease_ms=4, controller_address="h:2"),
    SuspectNode(
        node_id=1,
        node_epoch=2,
        at_ms=3,
        held=Unuploaded(
            record_count=3,
            size_bytes=9,
            stream_count=1,
            oldest_age_ms=4,
            streams=(UnuploadedStream(stream_id=StreamId(1), base_offset=5, end_offset=8, size_bytes=9),),
        ),
        held_before_silence_ms=400,
    ),
    TrustNode(node_id=1, node_epoch=2),
    DeclareDead(node_id=1, node_epoch=2, at_ms=3),
    LeaveCluster(node_id=1, node_epoch=2, at_ms=3),
    UnregisterNode(node_id=1),
    DrainNode(node_id=1, is_drained=True),
    ConfigureBroker(node_id=-1, changes={"a": "b", "c": None}, expected={}),
    CreateTopics(
        topics=(NewTopic(name="t", topic_id=ID, partition_count=3, configs={"a": "b"}, leaders=(1, 2)),),
        max_partitions=4,
        at_ms=5,
    ),
    DeleteTopics(topic_ids=(ID, ID), at_ms=1),
    AddPartitions(topic_id=ID, partition_count=5, max_partitions=6),
    ConfigureTopic(topic_id=ID, changes={"a": None}),
    OpenStreams(node_id=1, node_epoch=2, stream_ids=(StreamId(1), StreamId(2)), leader_epochs={StreamId(1): -1}),
    CloseStreams(node_id=1, node_epoch=2, end_offsets={StreamId(1): 2}, leader_epochs={StreamId(1): 3}),
    TrimStreams(node_id=1, node_epoch=2, log_start_offsets={StreamId(1): 2**62}, at_ms=3),
    ReassignStreams(targets={StreamId(1): 2, StreamId(2): -1}),
    RecoverWal(node_id=1, node_epoch=2, wal_id="w", leader_epochs={StreamId(1): 3}),
    GiveBackWal(node_id=1, node_epoch=2, wal_id="w"),
    AbandonWal(wal_id="w", slack_offsets=1, at_ms=2),
    Commit(node_id=1, node_epoch=2, commit=COMMIT, at_ms=3),
    ExpireObjects(object_ids=(ObjectId(1),)),
    ForgetObjects(object_ids=()),
    AllocateObjectIds(node_id=1, node_epoch=2, count=3),
    AllocateProducerIds(node_id=1, node_epoch=2, count=3),
]


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
def test_every_command_arrives_as_it_was(kind: type[Command[Any]]) -> None:
    samples = [command for command in SAMPLES if type(command) is kind]
    assert samples, "give a sample of each"
    for command in samples:
        assert decode_command(encode_command(command)) == command


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        (RegisterNode, NodeRegistration(node_id=1, node_epoch=2)),
        (
            OpenStreams,
            (OpenedStream(stream_id=StreamId(1), leader_epoch=3, log_start_offset=4, committed_end_offset=5),),
        ),
        (Commit, CommitResult(skipped={StreamId(1): SkipReason.FENCED})),
        (ExpireObjects, (ObjectId(1), ObjectId(2))),
        (AllocateObjectIds, range(5, 8)),
        (AbandonWal, {StreamId(1): (2, 3)}),
        (TrimStreams, None),
        (SuspectNode, True),
        (GiveBackWal, True),
        (CreateTopics, {"made": ID}),
        (DeleteTopics, {ID: None}),
    ],
)
def test_replies_arrive_as_they_were(kind: type[Command[Any]], reply: Any) -> None:
    outcome = Outcome(index=9, result=reply)
    assert decode_outcome(kind, encode_outcome(kind, outcome)) == outcome


def test_errors_keep_their_class_and_text() -> None:
    for error in (NodeFenced("another process took over"), TopicExists("it exists")):
        found = decode_outcome(TrimStreams, encode_outcome(TrimStreams, Outcome(index=1, result=error))).result
        assert (type(found), str(found)) == (type(error), str(error))
    found = decode_outcome(TrimStreams, encode_outcome(TrimStreams, Outcome(index=1, result=KeyError("x")))).result
    assert type(found) is ControllerError, "a class that is not known here"
    assert "KeyError" in str(found)


def test_errors_inside_replies_arrive_as_well() -> None:
    made = decode_outcome(
        CreateTopics, encode_outcome(CreateTopics, Outcome(index=1, result={"a": ID, "b": TopicExists("b exists")}))
    ).result
    assert made["a"] == ID
    assert isinstance(made["b"], TopicExists)
    deleted = decode_outcome(
        DeleteTopics, encode_outcome(DeleteTopics, Outcome(index=1, result={ID: UnknownTopic("none such")}))
    ).result
    assert isinstance(deleted[ID], UnknownTopic)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        encode_command(ConfigureTopic(topic_id=ID, changes={}))[:-1],
        encode_command(ConfigureTopic(topic_id=ID, changes={})).replace(b"ConfigureTopic", b"ConfigureSmoke"),
        encode_command(
            CreateTopics(topics=(NewTopic(name="t", topic_id=ID, partition_count=1),), max_partitions=1, at_ms=1)
        ).replace(b"partition_count", b"partition_cuont"),
    ],
)
def test_what_is_no_command_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_command(data)
