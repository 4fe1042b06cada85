"""InitProducerId (key 22, v0-5): obtain a producer id and epoch, fencing earlier ones of the transactional id.

- v3 lets a producer ask for a bump of its epoch (KIP-360); v4 may answer PRODUCER_FENCED (KIP-588).
- v5 may answer TRANSACTION_ABORTABLE (KIP-890). v6, two-phase commit (KIP-939), is not stable in Kafka 4.3.
"""

from typing import Annotated

from protocol.types import Api, Message, int16, int32, int64, since, string

__all__ = ["API", "InitProducerIdRequest", "InitProducerIdResponse"]


class InitProducerIdRequest(Message):
    transactional_id: string | None = ""
    transaction_timeout_ms: int32 = 0
    producer_id: Annotated[int64, since(3)] = -1
    producer_epoch: Annotated[int16, since(3)] = -1


class InitProducerIdResponse(Message):
    throttle_time_ms: int32 = 0
    error_code: int16 = 0
    producer_id: int64 = -1
    producer_epoch: int16 = 0


API = Api(
    key=22,
    name="InitProducerId",
    min_version=0,
    max_version=5,
    flexible_since=2,
    request=InitProducerIdRequest,
    response=InitProducerIdResponse,
)
