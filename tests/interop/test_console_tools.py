"""Kafka's console tools, each in a JVM of its own as its user starts it: `java -cp 'build/clients/java/lib/*' …`.

What they administer is in `test_administration.py` and `test_groups.py`; here is what they produce, consume and look up.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.interop.clients.base import DEADLINE_S, Record
from tests.interop.clients.confluent import Confluent
from tests.interop.clients.driver import Java, java_command
from tests.interop.conftest import installed

pytestmark = pytest.mark.interop


class Tools:
    """Runs one tool after another against one broker."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap

    def run(self, tool: str, *arguments: str, stdin: str = "") -> str:
        """What a tool prints."""
        command = [*java_command(), f"org.apache.kafka.tools.{tool}", "--bootstrap-server", self._bootstrap, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False)
        assert done.returncode == 0, f"{tool} {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, tool: str, *arguments: str) -> list[dict[str, Any]]:
        """The JSON objects that a tool prints, some one a line, some one after the other."""
        text = self.run(tool, *arguments)
        found = []
        position = text.find("{")
        while position >= 0:
            value, position = json.JSONDecoder().raw_decode(text, position)
            found.append(value)
            position = text.find("{", position)
        return found


@pytest.fixture
def tools(bootstrap: str) -> Tools:
    installed(Java(bootstrap))
    return Tools(bootstrap)


def test_console_producer_and_consumer(tools: Tools, topic: str, confluent: Confluent) -> None:
    tools.run(
        "ConsoleProducer",
        *("--topic", topic, "--compression-codec", "zstd"),
        *("--reader-property", "parse.key=true", "--reader-property", "parse.headers=true"),
        stdin="trace:1,kind:test\ta\tfirst\ntrace:2\tb\tsecond\n",
    )
    assert confluent.watermarks(topic) == (0, 2)
    shown = tools.run(
        "consumer.ConsoleConsumer",
        *("--topic", topic, "--from-beginning", "--max-messages", "2", "--group", topic),
        *("--formatter-property", "print.key=true", "--formatter-property", "print.headers=true"),
        *("--formatter-property", "print.offset=true"),
    )
    assert shown.splitlines() == ["Offset:0\ttrace:1,kind:test\ta\tfirst", "Offset:1\ttrace:2\tb\tsecond"]
    assert confluent.committed(topic, topic) == {0: 2}


def test_get_offsets(tools: Tools, topic: str, confluent: Confluent) -> None:
    confluent.create_topic(topic, 2)
    confluent.produce(topic, [Record(value=b"v", timestamp_ms=1_700_000_000_000 + n) for n in range(5)], partition=1)
    assert tools.run("GetOffsetShell", "--topic", topic).splitlines() == [f"{topic}:0:0", f"{topic}:1:5"]
    found = tools.run("GetOffsetShell", "--topic", topic, "--time", "1700000000003", "--exclude-internal-topics")
    assert f"{topic}:1:3" in found.splitlines()


def test_verifiable_producer_and_consumer(tools: Tools, topic: str) -> None:
    produced = tools.json("VerifiableProducer", "--topic", topic, "--max-messages", "500", "--acks", "-1")
    assert sum(event["name"] == "producer_send_success" for event in produced) == 500
    assert {event["name"]: event for event in produced}["tool_data"]["acked"] == 500

    arguments = ["--topic", topic, "--group-id", topic, "--max-messages", "500", "--reset-policy", "earliest"]
    consumed = tools.json("VerifiableConsumer", *arguments)
    assert sum(event["count"] for event in consumed if event["name"] == "records_consumed") == 500
    committed = [event for event in consumed if event["name"] == "offsets_committed"]
    assert committed
    assert all(event["success"] for event in committed)


def test_the_log_of_groups_reads_as_kafkas(tools: Tools, topic: str, confluent: Confluent) -> None:
    """Kafka's own classes decode what our coordinator wrote into `__consumer_offsets`."""
    confluent.produce(topic, [Record(value=b"v")] * 7)
    member = confluent.join(topic, topic, assignor="range", instance_id="one")
    try:
        seen = 0
        while seen < 7:
            seen += len(member.progress().records)
    finally:
        member.leave()
    records = [
        record
        for formatter in ("OffsetsMessageFormatter", "GroupMetadataMessageFormatter")
        for record in tools.json(
            "consumer.ConsoleConsumer",
            *("--topic", "__consumer_offsets", "--from-beginning", "--timeout-ms", "3000"),
            *("--formatter", f"org.apache.kafka.tools.consumer.{formatter}"),
        )
        if record["key"]["data"]["group"] == topic
    ]
    offsets = [record for record in records if record["key"]["type"] in (0, 1)]
    groups = [record for record in records if record["key"]["type"] == 2]
    assert offsets[-1]["value"]["data"]["offset"] == 7
    assert offsets[-1]["key"]["data"] == {"group": topic, "topic": topic, "partition": 0}
    # The last while it had its member, whose session may have ended meanwhile.
    group = [record["value"]["data"] for record in groups if record["value"] and record["value"]["data"]["members"]][-1]
    assert (group["protocolType"], group["protocol"]) == ("consumer", "range")
    assert [member["groupInstanceId"] for member in group["members"]] == ["one"]
