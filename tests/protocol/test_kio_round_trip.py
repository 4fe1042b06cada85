"""Every message of every API and version, byte for byte against kio, an implementation generated from Kafka's schemas."""

from __future__ import annotations

import dataclasses
import datetime
import io
import uuid
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given, settings
from kio.index import load_request_schema, load_response_schema
from kio.serial import entity_reader, entity_writer
from kio.serial._introspect import classify_field, is_optional

from protocol.compiler import compile_decoder, compile_encoder
from protocol.schema import FIXED, Layout
from protocol.types import NULL_UUID, Buffer, Message

from .examples import BODIES, Body, blank, filled, messages

EXAMPLES = 20
"""Random messages for each of the more than two hundred bodies, besides the blank and the filled one."""

each_body = pytest.mark.parametrize("body", BODIES, ids=str)


@each_body
def test_filled_message_is_the_same_in_kio(body: Body) -> None:
    check(body, filled(body.layout))


@each_body
def test_blank_message_is_the_same_in_kio(body: Body) -> None:
    check(body, blank(body.layout))


@each_body
def test_any_message_is_the_same_in_kio(body: Body) -> None:
    decode = compile_decoder(body.cls, body.version, body.flexible).call
    encode = compile_encoder(body.cls, body.version, body.flexible).call

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(messages(body.layout))
    def property_holds(message: Message) -> None:
        check(body, message, decode, encode)

    property_holds()


@each_body
def test_nullability_tags_and_defaults_are_the_same_in_kio(body: Body) -> None:
    load = load_request_schema if body.is_request else load_response_schema
    compare(body.layout, load(body.api.key, body.version))


def compare(layout: Layout, entity: type[Any]) -> None:
    theirs = {field.name: field for field in dataclasses.fields(entity)}
    for field in (*layout.fields, *layout.tagged):
        other = theirs.pop(field.name, None) or theirs.pop(field.name.removesuffix("_ms"))
        assert other.metadata.get("tag") == field.tag, field.name
        kind = field.kind.element or field.kind
        if kind.layout is not None:
            compare(kind.layout, classify_field(other).type_)
        if kind.name not in FIXED and field.tag is None:
            assert is_optional(other) == field.nullable, field.name
        tagged_struct = field.tag is not None and field.kind.layout is not None
        # Kafka gives only some fields a default of their own. kio writes a date of -1 and the zero UUID as None.
        if other.default is not dataclasses.MISSING and not tagged_struct:
            nothing = (-1, NULL_UUID) if other.default is None else ((),) if other.default == () else ()
            assert field.default in (plain(other.default), *nothing), field.name
    assert not theirs


def test_every_api_is_spoken_in_its_versions() -> None:
    spoken = {(body.api.name, body.api.min_version, body.api.max_version) for body in BODIES}
    assert spoken == {
        ("ApiVersions", 0, 4),
        ("Metadata", 0, 13),
        ("Produce", 3, 13),
        ("Fetch", 4, 18),
        ("ListOffsets", 1, 11),
        ("FindCoordinator", 0, 6),
        ("JoinGroup", 0, 9),
        ("SyncGroup", 0, 5),
        ("Heartbeat", 0, 4),
        ("LeaveGroup", 0, 5),
        ("OffsetCommit", 2, 10),
        ("OffsetFetch", 1, 10),
        ("InitProducerId", 0, 5),
        ("CreateTopics", 2, 7),
        ("DeleteTopics", 1, 6),
        ("DescribeGroups", 0, 6),
        ("ListGroups", 0, 5),
        ("DeleteGroups", 0, 2),
        ("OffsetDelete", 0, 0),
        ("AlterPartitionReassignments", 0, 1),
        ("ListPartitionReassignments", 0, 0),
        ("CreatePartitions", 0, 3),
        ("DeleteRecords", 0, 2),
        ("OffsetForLeaderEpoch", 2, 4),
        ("DescribeConfigs", 1, 4),
        ("AlterConfigs", 0, 2),
        ("IncrementalAlterConfigs", 0, 1),
        ("ListConfigResources", 0, 1),
        ("DescribeCluster", 0, 2),
        ("UnregisterBroker", 0, 0),
        ("DescribeTopicPartitions", 0, 0),
        ("DescribeLogDirs", 1, 5),
        ("DescribeProducers", 0, 0),
        ("DescribeTransactions", 0, 0),
        ("ListTransactions", 0, 2),
    }


def check(body: Body, message: Message, decode: Any = None, encode: Any = None) -> None:
    decode = decode or compile_decoder(body.cls, body.version, body.flexible).call
    encode = encode or compile_encoder(body.cls, body.version, body.flexible).call
    parts: list[Buffer] = []
    encode(message, parts)
    ours = b"".join(parts)
    load = load_request_schema if body.is_request else load_response_schema
    schema = load(body.api.key, body.version)

    theirs, size = entity_reader(schema)(ours, 0)
    assert size == len(ours)
    assert plain(theirs) == plain_message(message, theirs)
    out = io.BytesIO()
    entity_writer(schema)(out, theirs)
    assert ours == out.getvalue()
    assert decode(memoryview(ours), 0) == message


def plain(value: Any) -> Any:
    """A kio value as numbers, strings, bytes, lists and dicts."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime.timedelta):
        return value // datetime.timedelta(milliseconds=1)
    if isinstance(value, datetime.datetime):
        return (value - datetime.datetime.fromtimestamp(0, datetime.UTC)) // datetime.timedelta(milliseconds=1)
    if isinstance(value, uuid.UUID):
        return value.bytes
    if isinstance(value, IntEnum):
        return int(value)
    return value


def plain_message(value: Any, theirs: Any) -> Any:
    """Our value with the names and conventions of `theirs`, so that the two can be compared."""
    if isinstance(value, Message):
        names = {field.name for field in dataclasses.fields(theirs)}
        renamed = {name: name if name in names else name.removesuffix("_ms") for name in value.__struct_fields__}
        return {
            theirs_name: plain_message(getattr(value, name), getattr(theirs, theirs_name))
            for name, theirs_name in renamed.items()
            if theirs_name in names
        }
    if isinstance(value, list):
        return [plain_message(item, other) for item, other in zip(value, theirs, strict=True)]
    if value == () and theirs == ():
        return []
    if value is None and dataclasses.is_dataclass(theirs):
        return plain(type(theirs)())  # a tagged struct that was not sent
    if value == bytes(16) and theirs is None:
        return None  # kio reads the zero UUID as none
    if value == -1 and theirs is None:
        return None  # and a date of -1
    return value
