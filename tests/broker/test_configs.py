"""DescribeConfigs, IncrementalAlterConfigs and AlterConfigs, byte by byte and across restarts."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from broker.config import SETTINGS
from broker.config_resources import Operation
from broker.node import Node
from broker.topic_config import TOPIC_SETTINGS
from protocol.messages.alter_configs import AlterConfigsEntry, AlterConfigsRequest, AlterConfigsResource
from protocol.messages.describe_configs import (
    DescribeConfigsRequest,
    DescribeConfigsResource,
    DescribeConfigsResourceResult,
    DescribeConfigsResult,
)
from protocol.messages.incremental_alter_configs import (
    IncrementalAlterConfigsEntry,
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResource,
)
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch

TOPIC, BROKER, LOGGER = 2, 4, 8


async def describe(
    wire: Wire, kind: int, name: str, *keys: str, version: int = 4, **fields: Any
) -> DescribeConfigsResult:
    request = DescribeConfigsRequest(
        resources=[DescribeConfigsResource(resource_type=kind, resource_name=name, configuration_keys=keys or None)],
        **fields,
    )
    result: DescribeConfigsResult = (await wire.call("DescribeConfigs", version, request)).results[0]
    assert (result.resource_type, result.resource_name) == (kind, name)
    return result


async def config(wire: Wire, kind: int, name: str, key: str, **fields: Any) -> DescribeConfigsResourceResult:
    result = await describe(wire, kind, name, key, include_synonyms=True, include_documentation=True, **fields)
    assert result.error_code == 0, result.error_message
    (found,) = result.configs
    return found


async def alter(
    wire: Wire, kind: int, name: str, *entries: tuple[str, Operation, str | None], validate_only: bool = False
) -> tuple[int, str | None]:
    """Alter single configurations; returns error code and message."""
    resource = IncrementalAlterConfigsResource(
        resource_type=kind,
        resource_name=name,
        configs=[
            IncrementalAlterConfigsEntry(name=key, config_operation=operation, value=value)
            for key, operation, value in entries
        ],
    )
    request = IncrementalAlterConfigsRequest(resources=[resource], validate_only=validate_only)
    (response,) = (await wire.call("IncrementalAlterConfigs", 1, request)).responses
    return response.error_code, response.error_message


async def set_all(wire: Wire, kind: int, name: str, **configs: str) -> int:
    """Set all configurations (names with underscores), as old clients do."""
    entries = [AlterConfigsEntry(name=key.replace("_", "."), value=value) for key, value in configs.items()]
    resource = AlterConfigsResource(resource_type=kind, resource_name=name, configs=entries)
    (response,) = (await wire.call("AlterConfigs", 2, AlterConfigsRequest(resources=[resource]))).responses
    code: int = response.error_code
    return code


@pytest.mark.parametrize("version", [1, 2, 3, 4])
async def test_a_topic_is_told_in_every_version(wire: Wire, version: int) -> None:
    await wire.create_topic("t", retention_ms="5")
    found = {each.name: each for each in (await describe(wire, TOPIC, "t", version=version)).configs}
    assert found["retention.ms"].value == "5"
    assert found["retention.ms"].config_source == 1
    assert found["segment.bytes"].config_source == 5
    assert not any(each.read_only or each.is_sensitive or each.synonyms for each in found.values())
    assert found.keys() == {name for name, row in TOPIC_SETTINGS.items() if not row.is_removed}


async def test_where_a_value_comes_from(start_node: StartNode) -> None:
    async with start_node(log_retention_ms=1000) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        assert await alter(wire, BROKER, "", ("log.retention.ms", Operation.SET, "2000")) == (0, None)
        assert await alter(wire, BROKER, "1", ("log.retention.ms", Operation.SET, "3000")) == (0, None)
        assert await alter(wire, TOPIC, "t", ("retention.ms", Operation.SET, "4000")) == (0, None)
        found = await config(wire, TOPIC, "t", "retention.ms")
        assert (found.value, found.config_source, found.config_type) == ("4000", 1, 5)
        assert "Age from which on records may go" in (found.documentation or "")
        assert [(each.name, each.value, each.source) for each in found.synonyms] == [
            ("retention.ms", "4000", 1),
            ("log.retention.ms", "3000", 2),
            ("log.retention.ms", "2000", 3),
            ("log.retention.ms", "1000", 4),
            ("log.retention.ms", "604800000", 5),
        ]
        assert await alter(wire, TOPIC, "t", ("retention.ms", Operation.DELETE, None)) == (0, None)
        found = await config(wire, TOPIC, "t", "retention.ms")
        assert (found.value, found.config_source) == ("3000", 2)


async def test_a_broker_is_told_by_its_own_id(wire: Wire) -> None:
    found = {each.name: each for each in (await describe(wire, BROKER, "1")).configs}
    assert found.keys() == SETTINGS.keys()
    assert {name for name, each in found.items() if each.read_only} == {
        name for name, row in SETTINGS.items() if not row.dynamic
    }
    assert found["memory.bytes"].config_source == 4, "the fixture sets it"
    assert (await describe(wire, BROKER, "")).configs == [], "nothing was altered for all"
    for name in ("2", "one"):
        assert (await describe(wire, BROKER, name)).error_code == 42


async def test_resources_that_there_are_not(wire: Wire) -> None:
    for kind, name, code in (
        (TOPIC, "missing", 3),
        (TOPIC, "a b", 17),
        (LOGGER, "", 42),
        (LOGGER, "2", 42),
        (16, "metrics", 42),
        (99, "x", 42),
    ):
        result = await describe(wire, kind, name)
        assert (result.error_code, result.configs) == (code, []), (kind, name)
        assert (await alter(wire, kind, name, ("retention.ms", Operation.SET, "1")))[0] == code
        assert await set_all(wire, kind, name, retention_ms="1") == code


async def test_a_change_holds_at_once_and_survives_a_restart(start_node: StartNode) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        assert (await wire.produce("t", batch(b"x" * 2000))).error_code == 0
        assert await alter(wire, TOPIC, "t", ("max.message.bytes", Operation.SET, "1000")) == (0, None)
        assert (await wire.produce("t", batch(b"x" * 2000))).error_code == 10
        await wire.create_topic("u")
        assert await alter(wire, BROKER, "", ("message.max.bytes", Operation.SET, "500")) == (0, None)
        assert (await wire.produce("u", batch(b"x" * 800))).error_code == 10
        assert (await wire.produce("t", batch(b"x" * 800))).error_code == 0, "a topic's own word counts"
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert (await wire.produce("t", batch(b"x" * 2000))).error_code == 10
        assert (await wire.produce("u", batch(b"x" * 800))).error_code == 10
        assert (await config(wire, BROKER, "1", "message.max.bytes")).value == "500"
        assert await alter(wire, BROKER, "", ("message.max.bytes", Operation.DELETE, None)) == (0, None)
        assert (await wire.produce("u", batch(b"x" * 800))).error_code == 0


async def test_a_broker_follows_what_is_altered(node: Node, wire: Wire) -> None:
    assert await alter(wire, BROKER, "1", ("num.partitions", Operation.SET, "3")) == (0, None)
    await wire.create_topic("t", partitions=-1)
    assert len(node.running.broker.topics.by_name["t"].partitions) == 3
    assert await alter(wire, BROKER, "1", ("max.connections", Operation.SET, "1")) == (0, None)
    async with await Wire.connect(node.bootstrap_servers) as second:
        assert await second.closed_by_broker()


async def test_words_are_added_to_a_list_and_taken_out(wire: Wire) -> None:
    await wire.create_topic("t")
    assert await alter(wire, TOPIC, "t", ("cleanup.policy", Operation.APPEND, "compact")) == (0, None)
    assert (await config(wire, TOPIC, "t", "cleanup.policy")).value == "delete,compact"
    assert await alter(wire, TOPIC, "t", ("cleanup.policy", Operation.SUBTRACT, "delete")) == (0, None)
    assert (await config(wire, TOPIC, "t", "cleanup.policy")).value == "compact"
    assert (await alter(wire, TOPIC, "t", ("retention.ms", Operation.APPEND, "1")))[0] == 40
    assert (await alter(wire, TOPIC, "t", ("cleanup.policy", Operation.SUBTRACT, "compact")))[0] == 40


async def test_all_configurations_are_set_together(wire: Wire) -> None:
    await wire.create_topic("t", retention_ms="5", max_message_bytes="1000")
    assert await set_all(wire, TOPIC, "t", retention_ms="6") == 0
    assert (await config(wire, TOPIC, "t", "retention.ms")).value == "6"
    assert (await config(wire, TOPIC, "t", "max.message.bytes")).config_source == 5
    assert await set_all(wire, BROKER, "1", num_partitions="2") == 0
    assert await set_all(wire, BROKER, "1", log_retention_ms="7") == 0
    assert (await config(wire, BROKER, "1", "num.partitions")).value == "1"
    assert await set_all(wire, LOGGER, "1", root="INFO") == 42


async def test_what_is_wrong_is_said_and_changes_nothing(wire: Wire) -> None:
    await wire.create_topic("t")
    for kind, name, entries, code, words in (
        (TOPIC, "t", [("retention.ms", 0, "soon")], 40, "a whole number from -1 (ms)"),
        (TOPIC, "t", [("retention.mss", 0, "1")], 40, "did you mean retention.ms?"),
        (TOPIC, "t", [("retention.mss", 1, None)], 40, "unknown topic config name"),
        (TOPIC, "t", [("retention.ms", 0, None)], 42, "null"),
        (TOPIC, "t", [("retention.ms", 0, "1"), ("retention.ms", 1, None)], 42, "twice"),
        (TOPIC, "t", [("retention.ms", 9, "1")], 42, "operation 9"),
        (TOPIC, "t", [("retention.ms", 0, "1"), ("segment.ms", 0, "0")], 40, "segment.ms"),
        (BROKER, "1", [("node.id", 0, "2")], 42, "cannot update node.id while the broker runs"),
        (BROKER, "1", [("num.partitons", 0, "2")], 42, "did you mean num.partitions?"),
        (BROKER, "", [("num.partitions", 0, "0")], 42, "a whole number from 1 to 100000"),
    ):
        got = await alter(wire, kind, name, *entries)  # type: ignore[arg-type]
        assert got[0] == code, (entries, got)
        assert words in (got[1] or ""), (entries, got)
    assert (await config(wire, TOPIC, "t", "retention.ms")).config_source == 5
    assert await alter(wire, TOPIC, "t", ("retention.ms", Operation.SET, "1"), validate_only=True) == (0, None)
    assert (await alter(wire, BROKER, "1", ("num.partitions", Operation.SET, "0"), validate_only=True))[0] == 42
    assert (await config(wire, TOPIC, "t", "retention.ms")).config_source == 5


async def test_a_resource_comes_once(wire: Wire) -> None:
    await wire.create_topic("t")
    twice = [AlterConfigsResource(resource_type=TOPIC, resource_name="t")] * 2
    for response in (await wire.call("AlterConfigs", 2, AlterConfigsRequest(resources=twice))).responses:
        assert response.error_code == 42


async def test_levels_of_loggers(wire: Wire) -> None:
    logger = logging.getLogger("tidelog.retention")
    before = logger.level
    try:
        assert await alter(wire, LOGGER, "1", ("tidelog.retention", Operation.SET, "ERROR")) == (0, None)
        assert logger.level == logging.ERROR
        found = await config(wire, LOGGER, "1", "tidelog.retention")
        assert (found.value, found.config_source, found.read_only) == ("ERROR", 6, False)
        assert await alter(wire, LOGGER, "1", ("tidelog.retention", Operation.DELETE, None)) == (0, None)
        assert logger.level == logging.NOTSET
        for entry in (
            ("root", Operation.DELETE, None),
            ("no.such", Operation.SET, "INFO"),
            ("root", Operation.SET, "LOUD"),
        ):
            assert (await alter(wire, LOGGER, "1", entry))[0] == 42
    finally:
        logger.setLevel(before)
