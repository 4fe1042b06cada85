"""What `tidelog inspect group` makes of `__consumer_offsets`."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from broker.__main__ import main
from broker.groups.records import OffsetValue, encode_offset_key, encode_offset_value
from broker.groups.subscription import assigned_partitions
from broker.inspect.groups import GroupLog
from broker.testing import TidelogServer
from protocol.record_set import ControlType, Marker, Record, build_batch, build_control_batch


def committed(offset: int | None, *, group_id: str = "g", **fields: Any) -> memoryview:
    """A batch that commits an offset of t-0."""
    value = None if offset is None else encode_offset_value(OffsetValue(offset))
    return memoryview(build_batch([Record(encode_offset_key(group_id, "t", 0), value)], **fields))


def test_the_last_record_of_a_key_counts() -> None:
    log = GroupLog()
    log.add_batch(committed(5))
    log.add_batch(committed(7))
    log.add_batch(committed(1, group_id="other"))
    assert log.offsets["g"]["t", 0].offset == 7
    log.add_batch(committed(None, group_id="other"))
    assert log.group_ids() == ["g"]


@pytest.mark.parametrize(("end", "offset"), [(ControlType.COMMIT, 9), (ControlType.ABORT, 5)])
def test_offsets_sent_to_a_transaction_count_once_it_is_committed(end: ControlType, offset: int) -> None:
    log = GroupLog()
    log.add_batch(committed(5))
    log.add_batch(committed(9, transactional=True, producer_id=3, producer_epoch=0, base_sequence=0))
    assert log.offsets["g"]["t", 0].offset == 5
    log.add_batch(
        memoryview(
            build_control_batch(Marker(end, coordinator_epoch=0), producer_id=3, producer_epoch=0, timestamp_ms=1)
        )
    )
    assert log.offsets["g"]["t", 0].offset == offset


def test_an_assignment_is_read_or_told_to_be_of_its_own_kind() -> None:
    one_topic = struct.pack(">hih1sii", 3, 1, 1, b"t", 1, 4)
    assert assigned_partitions(b"") == []
    assert assigned_partitions(one_topic + struct.pack(">i", -1)) == [("t", 4)]
    assert assigned_partitions(one_topic[:-2]) is None


def test_a_real_consumer_is_shown_live_and_after_it_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """confluent-kafka joins, consumes six of ten, commits; its offsets are in the WAL only, then in objects."""
    server = TidelogServer(tmp_path / "tidelog", group_initial_rebalance_delay_ms=0, upload_interval_ms=600_000)
    server.start()
    place = [
        "--bucket", server.object_store.uri, "--set", f"wal.uri={server.node.wal_uri}",
    ]  # fmt: skip

    def inspected(*arguments: str) -> list[dict[str, Any]]:
        assert main(["--log-level", "error", "inspect", "group", *arguments, "--json", *place]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    try:
        assert [row["kind"] for row in inspected()] == ["note"]
        producer = Producer({"bootstrap.servers": server.bootstrap_servers})
        for number in range(10):
            producer.produce("orders", value=str(number))
        assert producer.flush(30) == 0
        consumer = Consumer(
            {
                "bootstrap.servers": server.bootstrap_servers,
                "group.id": "billing",
                "client.id": "till-1",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        consumer.subscribe(["orders"])
        got = 0
        while got < 6:
            got += len(consumer.consume(6 - got, timeout=1))
        consumer.commit(offsets=[TopicPartition("orders", 0, 6)], asynchronous=False)

        group, member, offset = inspected("billing")

        assert (group["group_id"], group["member_count"], group["generation_id"]) == ("billing", 1, 1)
        assert (member["client_id"], member["assignment"]) == ("till-1", ["orders-0"])
        assert (offset["topic"], offset["partition"], offset["offset"]) == ("orders", 0, 6)
        assert (offset["log_end_offset"], offset["lag"]) == (10, 4)
        consumer.close()
        server.stop()  # uploads everything
        group, offset = inspected("billing")
        assert (group["member_count"], offset["lag"]) == (0, 4)
        assert [row["group_id"] for row in inspected()] == ["billing"]
        assert [row["message"] for row in inspected("nobody")] == ["no such group is stored"]
        assert main(["--log-level", "error", "inspect", "group", "billing", *place]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("group billing in __consumer_offsets-")
        assert lines[1].startswith("  orders-0: offset 6, lag 4 (log end 10), committed 20")
    finally:
        server.stop()
