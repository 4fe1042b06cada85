"""What nodes tell of their loads counts when it was told often enough since partitions moved, and not too long ago."""

from __future__ import annotations

from controller.balancer import StreamLoad
from controller.loads import REPORTS, Loads
from controller.peers import NodeLoad
from s3stream.metadata import StreamId

A, B = StreamId(1), StreamId(2)


def test_a_load_is_the_mean_of_three_reports_after_the_first() -> None:
    loads = Loads(interval_s=10)
    loads.report(1, NodeLoad(bytes_in=10**9, bytes_out=10**9, busy=((A, 10**9, 10**9),)), 0)
    for number in range(REPORTS):
        assert loads.of(1, 10 * number) is None, "not told often enough"
        busy = ((A, 30, 3), (B, 60, 0)) if number else ((A, 30, 3),)
        loads.report(1, NodeLoad(bytes_in=90, bytes_out=3 * number, busy=busy), 10 * number)
    found = loads.of(1, 30)
    assert found is not None
    assert found[0] == StreamLoad(bytes_in=90, bytes_out=3)
    assert found[1] == {A: StreamLoad(bytes_in=30, bytes_out=3), B: StreamLoad(bytes_in=40, bytes_out=0)}
    assert loads.of(2, 30) is None
    assert loads.of(1, 20 + 31) is None, "it tells nothing any more"
    loads.forget()
    assert loads.of(1, 30) is None
    assert loads.count == REPORTS + 1
