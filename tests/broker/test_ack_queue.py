"""The hand-written answer to the commonest request equals the compiled one, byte for byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.ack_queue import encode_single
from protocol.apis import encode_response
from protocol.messages.produce import PartitionProduceResponse, ProduceResponse, TopicProduceResponse

int64 = st.integers(-1, 2**63 - 1)


@given(
    st.sampled_from([9, 10, 11]),
    st.integers(-(2**31), 2**31 - 1),
    st.text("abc._-", min_size=1, max_size=249),
    st.builds(
        PartitionProduceResponse,
        index=st.integers(0, 2**31 - 1),
        error_code=st.sampled_from([0, 0, 0, 3]),
        base_offset=int64,
        log_append_time_ms=int64,
        log_start_offset=int64,
    ),
    st.integers(1, 2),
)
def test_a_single_batch(
    version: int, correlation_id: int, name: str, answer: PartitionProduceResponse, partitions: int
) -> None:
    topics = [TopicProduceResponse(name=name, partition_responses=[answer] * partitions)]
    frame = encode_single(correlation_id, topics)
    if answer.error_code or partitions > 1 or len(name) > 126:
        assert frame is None
    else:
        assert frame == b"".join(encode_response(0, version, correlation_id, ProduceResponse(responses=topics)))
