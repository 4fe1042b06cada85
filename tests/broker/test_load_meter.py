"""What is measured of partitions is what clients sent and got since the last time."""

from __future__ import annotations

from broker.load_meter import LoadMeter
from broker.node import Node
from controller.peers import NodeLoad
from tests.broker.wire import Wire, batch


async def test_loads_are_those_since_the_last_time(node: Node, wire: Wire) -> None:
    await wire.create_topic("t", partitions=3)
    topic = node.running.broker.topics.by_name["t"]
    ids = [state.stream_id for state in topic.info.partitions]
    meter = LoadMeter(partitions=node.running.broker.partitions.__iter__, interval_s=1, report=lambda load: None)
    assert meter.measured(1.0) == NodeLoad(bytes_in=0, bytes_out=0)
    size = len(batch(b"x" * 1000))
    for partition in (0, 0, 0, 2):
        await wire.produce("t", batch(b"x" * 1000), partition=partition)
    await wire.fetch("t", partition=2)
    assert meter.measured(0.5) == NodeLoad(
        bytes_in=size * 8, bytes_out=size * 2, busy=((ids[0], size * 6, 0), (ids[2], size * 2, size * 2))
    ), "bytes a second, the busiest first"
    await wire.produce("t", batch(b"x" * 1000), partition=1)
    assert meter.measured(1.0) == NodeLoad(bytes_in=size, bytes_out=0, busy=((ids[1], size, 0),))
    assert meter.measured(1.0) == NodeLoad(bytes_in=0, bytes_out=0)
