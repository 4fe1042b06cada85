"""Limits of connections: of all, of one address, and of addresses with a limit of their own (KIP-612 and before)."""

from __future__ import annotations

import pytest

from broker.addresses import parse_overrides
from broker.config import InvalidSettings
from broker.connection_limits import ConnectionLimits, plain_address
from protocol.messages.api_versions import ApiVersionsRequest
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire


def test_each_address_has_its_limit() -> None:
    limits = ConnectionLimits(most=100, most_per_ip=2)
    limits.override({"10.0.0.7": 1, "fd00::7": 3})
    assert [limits.opened("10.0.0.1") for _ in range(2)] == [None, None]
    assert limits.opened("10.0.0.1") == "more than max.connections.per.ip = 2 from 10.0.0.1"
    assert limits.opened("10.0.0.7") is None
    assert limits.opened("10.0.0.7") == "more than 1 from 10.0.0.7 (max.connections.per.ip.overrides)"
    assert [limits.opened("fd00::7") for _ in range(3)] == [None, None, None]
    limits.closed("10.0.0.1")
    limits.closed("10.0.0.1")
    assert limits.opened("10.0.0.1") is None
    assert limits.count == 7


def test_the_limit_of_all_comes_first() -> None:
    limits = ConnectionLimits(most=1, most_per_ip=5)
    assert limits.opened("a") is None
    assert limits.opened("b") == "more than max.connections = 1"


def test_no_address_but_the_named_ones() -> None:
    """As in Kafka, 0 shuts everybody out whom the overrides do not name."""
    limits = ConnectionLimits(most=10, most_per_ip=0)
    limits.override({"127.0.0.1": 2})
    assert limits.opened("127.0.0.1") is None
    assert limits.opened("10.0.0.1") is not None


@pytest.mark.parametrize(
    ("text", "plain"),
    [("10.0.0.1", "10.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1"), ("FE80::1%eth0", "fe80::1"), ("unix", "unix")],
)
def test_one_spelling_for_each_address(text: str, plain: str) -> None:
    assert plain_address(text) == plain


def test_overrides_are_parsed() -> None:
    assert parse_overrides("10.0.0.7:100, [::1]:5,gateway:0") == {"10.0.0.7": 100, "::1": 5, "gateway": 0}
    for wrong in ("10.0.0.7", "10.0.0.7:-1", "::1:5", ":5"):
        with pytest.raises(InvalidSettings, match="address:limit"):
            parse_overrides(wrong)


async def test_more_than_an_address_may_have_are_closed(start_node: StartNode) -> None:
    async with (
        start_node(max_connections_per_ip=1, max_connections_per_ip_overrides="localhost:2") as node,
        await Wire.connect(node.bootstrap_servers) as one,
        await Wire.connect(node.bootstrap_servers) as two,
    ):
        for wire in (one, two):
            await wire.call("ApiVersions", 0, ApiVersionsRequest())
        async with await Wire.connect(node.bootstrap_servers) as three:
            assert await three.closed_by_broker()
        assert (await two.call("ApiVersions", 0, ApiVersionsRequest())).error_code == 0


async def test_a_name_that_does_not_resolve_stops_the_start(start_node: StartNode) -> None:
    with pytest.raises(InvalidSettings, match="cannot be resolved"):
        async with start_node(max_connections_per_ip_overrides="a..b:2"):
            pass
