"""UnregisterBroker (key 64, v0): forget a broker that is gone (KIP-631)."""

from protocol.types import Api, Message, int16, int32, string

__all__ = ["API", "UnregisterBrokerRequest", "UnregisterBrokerResponse"]


class UnregisterBrokerRequest(Message):
    broker_id: int32 = 0


class UnregisterBrokerResponse(Message):
    throttle_time_ms: int32 = 0
    error_code: int16 = 0
    error_message: string | None = ""


API = Api(
    key=64,
    name="UnregisterBroker",
    min_version=0,
    max_version=0,
    flexible_since=0,
    request=UnregisterBrokerRequest,
    response=UnregisterBrokerResponse,
)
