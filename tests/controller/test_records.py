"""Records: what is written is read back, and what is not understood stops the node instead of being guessed at."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import MetadataCorrupt, UnsupportedMetadata
from controller.records import (
    _KNOWN_TAGS,
    BrokerConfigsChanged,
    ClusterFormatted,
    LeaderChanged,
    MetadataRestored,
    MetadataVersionRaised,
    NodeDead,
    NodeDrained,
    NodeRegistered,
    NodeSuspected,
    NodeTrusted,
    NodeUnregistered,
    ObjectCommitted,
    ObjectIdsAllocated,
    ObjectsCompacted,
    ObjectsExpired,
    ObjectsForgotten,
    PartitionsAdded,
    ProducerIdsAllocated,
    Range,
    Record,
    RestoredStream,
    RestoredTopic,
    Skip,
    StreamsAbandoned,
    StreamsClosed,
    StreamsOpened,
    StreamsReassigned,
    StreamsRecovering,
    StreamsTrimmed,
    TopicConfigsChanged,
    TopicCreated,
    TopicDeleted,
    Unuploaded,
    UnuploadedStream,
    decode_records,
    encode_records,
)

NUMBERS = st.integers(0, 2**63 - 1)
TEXT = st.text(max_size=20)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=3).map(tuple)
IDS = st.lists(NUMBERS, max_size=3).map(tuple)
CONFIGS = st.dictionaries(TEXT, TEXT, max_size=3)
TOPIC_IDS = st.binary(min_size=16, max_size=16)
RANGES = st.builds(
    Range,
    stream_id=NUMBERS,
    leader_epoch=st.integers(-1, 2**31 - 1),
    base_offset=NUMBERS,
    end_offset=NUMBERS,
    record_count=NUMBERS,
    size_bytes=NUMBERS,
    max_timestamp_ms=st.integers(-1, 2**63 - 1),
    has_state=st.booleans(),
)
OBJECTS = st.builds(
    ObjectCommitted,
    object_id=NUMBERS,
    size_bytes=NUMBERS,
    ranges=st.lists(RANGES, max_size=3).map(tuple),
    skipped=st.lists(st.tuples(NUMBERS, st.sampled_from(Skip)), max_size=3).map(tuple),
    committed_at_ms=NUMBERS,
)
RECORDS: dict[type, st.SearchStrategy[Record]] = {
    ClusterFormatted: st.builds(ClusterFormatted, cluster_id=TEXT, metadata_version=NUMBERS),
    LeaderChanged: st.builds(LeaderChanged, controller_epoch=NUMBERS, leader=TEXT),
    NodeRegistered: st.builds(
        NodeRegistered,
        node_id=NUMBERS,
        node_epoch=NUMBERS,
        wal_id=TEXT,
        wal_epoch=NUMBERS,
        address=TEXT,
        rack=TEXT,
        registered_at_ms=NUMBERS,
        lease_ms=NUMBERS,
        controller_address=TEXT,
    ),
    NodeSuspected: st.builds(
        NodeSuspected,
        node_id=NUMBERS,
        node_epoch=NUMBERS,
        at_ms=NUMBERS,
        held=st.none()
        | st.builds(
            Unuploaded,
            record_count=NUMBERS,
            size_bytes=NUMBERS,
            stream_count=NUMBERS,
            oldest_age_ms=NUMBERS,
            streams=st.lists(
                st.builds(
                    UnuploadedStream, stream_id=NUMBERS, base_offset=NUMBERS, end_offset=NUMBERS, size_bytes=NUMBERS
                ),
                max_size=3,
            ).map(tuple),
        ),
        held_before_silence_ms=NUMBERS,
    ),
    NodeTrusted: st.builds(NodeTrusted, node_id=NUMBERS, node_epoch=NUMBERS),
    NodeDead: st.builds(NodeDead, node_id=NUMBERS, node_epoch=NUMBERS, at_ms=NUMBERS),
    NodeDrained: st.builds(NodeDrained, node_id=NUMBERS, is_drained=st.booleans()),
    MetadataVersionRaised: st.builds(MetadataVersionRaised, metadata_version=NUMBERS),
    NodeUnregistered: st.builds(NodeUnregistered, node_id=NUMBERS),
    TopicCreated: st.builds(
        TopicCreated,
        topic_id=TOPIC_IDS,
        name=TEXT,
        first_stream_id=NUMBERS,
        leaders=IDS,
        configs=CONFIGS,
        created_at_ms=NUMBERS,
    ),
    TopicDeleted: st.builds(TopicDeleted, topic_id=TOPIC_IDS, deleted_at_ms=NUMBERS),
    TopicConfigsChanged: st.builds(TopicConfigsChanged, topic_id=TOPIC_IDS, configs=CONFIGS),
    StreamsOpened: st.builds(StreamsOpened, node_id=NUMBERS, wal_id=TEXT, streams=PAIRS),
    StreamsRecovering: st.builds(StreamsRecovering, node_id=NUMBERS, wal_id=TEXT, streams=PAIRS),
    StreamsClosed: st.builds(StreamsClosed, stream_ids=IDS),
    StreamsTrimmed: st.builds(StreamsTrimmed, log_start_offsets=PAIRS, trimmed_at_ms=NUMBERS),
    StreamsAbandoned: st.builds(
        StreamsAbandoned,
        wal_id=TEXT,
        resume_offsets=PAIRS,
        abandoned_at_ms=NUMBERS,
        kept=st.lists(NUMBERS, max_size=3).map(tuple),
    ),
    ObjectCommitted: OBJECTS,
    ObjectsCompacted: st.builds(ObjectsCompacted, objects=st.lists(OBJECTS, max_size=2).map(tuple), sources=IDS),
    ObjectsExpired: st.builds(ObjectsExpired, object_ids=IDS),
    ObjectsForgotten: st.builds(ObjectsForgotten, object_ids=IDS),
    ObjectIdsAllocated: st.builds(ObjectIdsAllocated, node_id=NUMBERS, end_object_id=NUMBERS),
    ProducerIdsAllocated: st.builds(ProducerIdsAllocated, node_id=NUMBERS, end_producer_id=NUMBERS),
    PartitionsAdded: st.builds(
        PartitionsAdded, topic_id=TOPIC_IDS, first_stream_id=NUMBERS, leaders=st.lists(NUMBERS, max_size=3).map(tuple)
    ),
    BrokerConfigsChanged: st.builds(BrokerConfigsChanged, node_id=NUMBERS, configs=CONFIGS),
    StreamsReassigned: st.builds(StreamsReassigned, targets=PAIRS),
    MetadataRestored: st.builds(
        MetadataRestored,
        index=NUMBERS,
        restored_at_ms=NUMBERS,
        deleted_topic_ids=st.lists(TOPIC_IDS, max_size=2).map(tuple),
        topics=st.lists(
            st.builds(
                RestoredTopic, topic_id=TOPIC_IDS, name=TEXT, stream_ids=IDS, configs=CONFIGS, created_at_ms=NUMBERS
            ),
            max_size=2,
        ).map(tuple),
        streams=st.lists(
            st.builds(
                RestoredStream,
                stream_id=NUMBERS,
                topic_id=TOPIC_IDS,
                partition=NUMBERS,
                node_id=NUMBERS,
                leader_epoch=st.integers(-1, 2**31 - 1),
                log_start_offset=NUMBERS,
                committed_end_offset=NUMBERS,
                gaps=PAIRS,
                newest_state_object_id=NUMBERS,
            ),
            max_size=2,
        ).map(tuple),
        objects=st.lists(OBJECTS, max_size=2).map(tuple),
        broker_configs=st.none() | st.lists(st.tuples(NUMBERS, CONFIGS), max_size=2).map(tuple),
    ),
}


@settings(deadline=None)
@given(st.lists(st.one_of(*RECORDS.values()), max_size=5).map(tuple))
def test_records_come_back_as_they_were(records: tuple[Record, ...]) -> None:
    assert decode_records(encode_records(records), where="here") == records


def test_every_record_type_is_generated_and_has_a_tag_of_its_own() -> None:
    assert set(RECORDS) == set(Record.__args__)
    tags = [kind.__struct_config__.tag for kind in RECORDS]
    assert len(set(tags)) == len(tags)
    assert set(tags) == set(_KNOWN_TAGS)


def test_the_encoding_does_not_change() -> None:
    """Golden bytes: what is in buckets already must be readable for ever."""
    record = ObjectCommitted(
        object_id=7,
        size_bytes=1000,
        ranges=(
            Range(
                stream_id=3,
                leader_epoch=2,
                base_offset=100,
                end_offset=200,
                record_count=100,
                size_bytes=900,
                max_timestamp_ms=-1,
                has_state=True,
            ),
        ),
        skipped=((4, Skip.FENCED),),
        committed_at_ms=5,
    )
    assert encode_records([record]).hex() == "91960d07cd03e89198030264ccc864cd0384ffc3919204020 5".replace(" ", "")
    assert encode_records([StreamsClosed(stream_ids=(1, 300))]).hex() == "91920a9201cd012c"


def test_a_record_type_of_a_newer_version_stops_the_node() -> None:
    data = msgspec.msgpack.encode([[10, [1]], [99, "what might this be"]])
    with pytest.raises(UnsupportedMetadata, match=r"log/7 holds a metadata record of type 99.*upgrade this node"):
        decode_records(data, where="log/7")


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x91", msgspec.msgpack.encode([[10, "one"]]), msgspec.msgpack.encode(5)]
)
def test_damage_is_told_from_a_newer_version(data: bytes) -> None:
    with pytest.raises(MetadataCorrupt, match="log/7"):
        decode_records(data, where="log/7")
