"""Framing: headers, sizes, and the traps that Kafka's framing holds."""

from __future__ import annotations

import pytest

from protocol import apis, frames
from protocol.errors import ErrorCode, Malformed, UnsupportedVersion
from protocol.messages.api_versions import ApiVersion, ApiVersionsRequest, ApiVersionsResponse, SupportedFeatureKey
from protocol.messages.fetch import FetchableTopicResponse, FetchResponse, PartitionData
from protocol.messages.metadata import MetadataRequest, MetadataRequestTopic, MetadataResponse, MetadataResponseTopic
from protocol.messages.produce import PartitionProduceData, ProduceRequest, ProduceResponse, TopicProduceData

API_VERSIONS, PRODUCE, FETCH, METADATA = 18, 0, 1, 3


def test_a_request_of_header_v1_by_hand() -> None:
    frame = bytes.fromhex("00030005000000070003616263ffffffff01")
    header = frames.parse_request_header(frame)
    assert header == frames.RequestHeader(METADATA, 5, 7, "abc", 13)
    assert apis.decode_request(METADATA, 5, frame, header.body_position) == MetadataRequest(None, True)


def test_a_flexible_request_keeps_the_clients_id_as_an_int16_string() -> None:
    frame = bytes.fromhex("00120003000000070003616263000278027900")
    header = frames.parse_request_header(frame)
    assert header == frames.RequestHeader(API_VERSIONS, 3, 7, "abc", 14)
    assert apis.decode_request(API_VERSIONS, 3, frame, header.body_position) == ApiVersionsRequest("x", "y")
    assert (
        b"".join(apis.encode_request(API_VERSIONS, 3, 7, "abc", ApiVersionsRequest("x", "y"))) == b"\0\0\0\x13" + frame
    )


def test_client_id_may_be_null_and_header_tags_are_skipped() -> None:
    frame = bytes.fromhex("0012000300000007ffff010502abcd0278027900")
    header = frames.parse_request_header(frame)
    assert (header.client_id, header.body_position) == (None, 15)
    assert apis.decode_request(API_VERSIONS, 3, frame, header.body_position) == ApiVersionsRequest("x", "y")


def test_null_client_id_is_written_as_minus_one() -> None:
    assert b"".join(apis.encode_request(METADATA, 0, 7, None, MetadataRequest([]))).hex() == (
        "0000000e0003000000000007ffff00000000"
    )


@pytest.mark.parametrize("size", range(17))
def test_a_header_cut_short_is_malformed(size: int) -> None:
    whole = bytes.fromhex("00120003000000070003616263010502abcd")
    assert frames.parse_request_header(whole).body_position == 18
    with pytest.raises(Malformed):
        frames.parse_request_header(whole[:size])


def test_a_client_id_that_reaches_past_the_end_is_malformed() -> None:
    with pytest.raises(Malformed, match="client id"):
        frames.parse_request_header(bytes.fromhex("00030000000000070005616263"))


def test_client_id_of_bad_utf8_is_malformed() -> None:
    with pytest.raises(Malformed, match="utf-8"):
        frames.parse_request_header(bytes.fromhex("00030000000000070001ff"))


def test_an_unknown_key_still_has_a_header() -> None:
    header = frames.parse_request_header(bytes.fromhex("03e7000000000007ffff"))
    assert header.api_key == 999
    with pytest.raises(UnsupportedVersion, match="999"):
        apis.decode_request(999, 0, b"", 0)


def test_unsupported_api_versions_are_answered_in_v0() -> None:
    """KIP-511: the header of a version from the future parses, its body is not looked at, the answer is v0."""
    frame = bytes.fromhex("0012006300000007ffff00deadbeef")
    header = frames.parse_request_header(frame)
    assert header.api_version == 99
    with pytest.raises(UnsupportedVersion, match=r"ApiVersions v99 .* v0-4"):
        apis.decode_request(API_VERSIONS, 99, frame, header.body_position)

    answer = ApiVersionsResponse(ErrorCode.UNSUPPORTED_VERSION, [ApiVersion(API_VERSIONS, 0, 4)])
    assert b"".join(apis.encode_response(API_VERSIONS, 0, 7, answer)).hex() == (
        "0000001000000007002300000001001200000004"
    )


@pytest.mark.parametrize("version", range(5))
def test_api_versions_responses_have_header_v0_in_every_version(version: int) -> None:
    parts = apis.encode_response(API_VERSIONS, version, 7, ApiVersionsResponse(ErrorCode.NONE, []))
    assert b"".join(parts)[4:10].hex() == "000000070000"
    assert frames.parse_response_header(API_VERSIONS, version, b"".join(parts)[4:]) == (7, 4)


def test_other_flexible_responses_have_header_v1() -> None:
    assert b"".join(apis.encode_response(PRODUCE, 8, 7, ProduceResponse())).hex() == "0000000c000000070000000000000000"
    assert b"".join(apis.encode_response(PRODUCE, 9, 7, ProduceResponse())).hex() == "0000000b0000000700010000000000"


def test_response_header_tags_are_skipped_and_short_ones_malformed() -> None:
    assert frames.parse_response_header(PRODUCE, 9, bytes.fromhex("00000007010502abcd")) == (7, 9)
    for size in range(9):
        with pytest.raises(Malformed):
            frames.parse_response_header(PRODUCE, 9, bytes.fromhex("00000007010502abcd")[:size])


def test_produce_advertises_0_and_refuses_what_is_below_3() -> None:
    """librdkafka before 2.8.1 sends uncompressed when the minimum is not 0 (KAFKA-18659)."""
    api = apis.API[PRODUCE]
    assert (api.advertised_min_version, api.min_version) == (0, 3)
    with pytest.raises(UnsupportedVersion):
        apis.decode_request(PRODUCE, 2, bytes(100), 0)


def test_unsupported_version_is_also_malformed_so_that_one_clause_closes_the_connection() -> None:
    with pytest.raises(Malformed):
        apis.decode_request(FETCH, 19, bytes(100), 0)
    with pytest.raises(Malformed):
        apis.encode_response(FETCH, 3, 1, FetchResponse())


def test_feature_with_minimum_0_is_carried_where_the_caller_lists_it() -> None:
    """Leaving it out before v4 is the broker's decision; the codec sends what it is given."""
    answer = ApiVersionsResponse(0, [], supported_features=[SupportedFeatureKey("kraft.version", 0, 1)])
    [part] = apis.encode_response(API_VERSIONS, 4, 1, answer)
    assert apis.decode_response(API_VERSIONS, 4, part[4:], 4) == answer


def test_compact_null_where_null_is_not_allowed_is_malformed() -> None:
    with pytest.raises(Malformed, match=r"ApiVersionsRequest.client_software_name is null"):
        apis.decode_request(API_VERSIONS, 3, bytes.fromhex("00027900"), 0)
    with pytest.raises(Malformed, match=r"MetadataRequest.topics is null"):
        apis.decode_request(METADATA, 0, bytes.fromhex("ffffffff"), 0)


def test_metadata_v0_has_no_null_and_v1_tells_null_from_empty() -> None:
    assert apis.decode_request(METADATA, 0, bytes.fromhex("00000000"), 0).topics == []
    assert apis.decode_request(METADATA, 1, bytes.fromhex("00000000"), 0).topics == []
    assert apis.decode_request(METADATA, 1, bytes.fromhex("ffffffff"), 0).topics is None


def test_metadata_names_are_null_only_where_topics_go_by_id() -> None:
    by_id = MetadataRequest([MetadataRequestTopic(bytes(range(16)), None)])
    [frame] = apis.encode_request(METADATA, 12, 1, None, by_id)
    body = frames.parse_request_header(frame[4:]).body_position
    assert apis.decode_request(METADATA, 12, frame[4:], body) == by_id
    with pytest.raises(AttributeError):
        apis.encode_response(METADATA, 11, 1, MetadataResponse(topics=[MetadataResponseTopic(0, None)]))


def test_operations_default_to_not_asked() -> None:
    assert MetadataResponse().cluster_authorized_operations == -2147483648
    assert MetadataResponseTopic().topic_authorized_operations == -2147483648


def test_fetched_records_default_to_empty_never_null() -> None:
    """KAFKA-18646."""
    [part] = apis.encode_response(
        FETCH, 4, 1, FetchResponse(responses=[FetchableTopicResponse("t", partitions=[PartitionData()])])
    )
    assert part.endswith(bytes(4))


def test_bytes_after_the_body_are_ignored_as_kafka_ignores_them() -> None:
    assert apis.decode_request(METADATA, 1, bytes.fromhex("ffffffffcafe"), 0) == MetadataRequest(None)


def test_decoded_records_are_a_view_into_the_frame() -> None:
    request = ProduceRequest(None, 1, 1000, [TopicProduceData("t", partition_data=[PartitionProduceData(0, b"batch")])])
    frame = bytearray(b"".join(apis.encode_request(PRODUCE, 9, 1, None, request))[4:])
    decoded = apis.decode_request(PRODUCE, 9, memoryview(frame), frames.parse_request_header(frame).body_position)
    frame[frame.index(b"batch")] = ord("B")
    assert decoded.topic_data[0].partition_data[0].records == b"Batch"


def test_large_records_go_out_as_they_are_and_small_ones_are_joined() -> None:
    large, small = memoryview(bytes(5000)), memoryview(b"small")
    records = [
        PartitionData(0, records=large),
        PartitionData(1, records=small),
        PartitionData(2, records=[small, large, small]),
    ]
    answer = FetchResponse(responses=[FetchableTopicResponse("t", partitions=records)])
    parts = apis.encode_response(FETCH, 12, 1, answer)
    assert [part for part in parts if part is large] == [large, large]
    assert len(parts) == 5
    frame = b"".join(parts)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    decoded = apis.decode_response(FETCH, 12, frame[4:], 5)
    assert [p.records for p in decoded.responses[0].partitions] == [large, small, b"small" + large + b"small"]


@pytest.mark.parametrize("size", [0, 126, 127, 128, 16382, 16383, 16384, 2097150, 2097151, 2097152])
@pytest.mark.parametrize("version", [11, 12])
def test_lengths_around_every_width_of_the_varint(size: int, version: int) -> None:
    answer = FetchResponse(responses=[FetchableTopicResponse("t", partitions=[PartitionData(records=bytes(size))])])
    frame = b"".join(apis.encode_response(FETCH, version, 1, answer))[4:]
    decoded = apis.decode_response(FETCH, version, frame, frames.parse_response_header(FETCH, version, frame)[1])
    assert len(decoded.responses[0].partitions[0].records) == size
