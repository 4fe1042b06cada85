"""One run: a cluster under load, faults as the schedule has them, and at the end every promise is held against what is there."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.checker.history import History, check
from tests.crash.load import create_topic, read_topic
from tests.faults.cluster import PREFIX, Cluster, FaultyNode, running_cluster
from tests.faults.load import Watermarks, all_loads, loading
from tests.faults.schedule import NETWORK_FAULTS, PROCESS_FAULTS, Fault, Step, steps
from tests.stores.s3_server import S3Server

__all__ = ["Report", "faulty_run"]

TOPIC = "t"
PARTITIONS = 6
_VERIFIED_WITHIN_S = 120.0
_STARTS = 5
_DEPOSED = ("was fenced: somebody else recovers it", "is taken for dead with node epoch", "was registered again")
_TAKEN_OVER_WITHIN_S = 30.0
"""Then the broker that was killed comes back anyway: how soon others take over is tested elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run was like."""

    faults: Counter[Fault]
    acknowledged_records: int
    seen_records: int
    watermarks: int
    longest_gaps_s: dict[str, float]
    """Between two acknowledgements of one partition, by producer."""

    def __str__(self) -> str:
        gaps = ", ".join(f"{name} {gap_s:.1f} s" for name, gap_s in self.longest_gaps_s.items())
        faults = ", ".join(f"{count} × {fault.name.lower()}" for fault, count in sorted(self.faults.items()))
        return (
            f"{self.acknowledged_records} records acknowledged, {self.seen_records} read meanwhile, {self.watermarks} high watermarks; "
            f"longest gaps between acknowledgements: {gaps}; faults: {faults}"
        )


def faulty_run(
    directory: Path,
    server: S3Server,
    *,
    seed: int,
    seconds: float,
    per_s: int = 100,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Have faults for so long, then let all come to rest.

    Raises:
        AssertionError: a promise was broken, a client was told of an error, or a broker ended by itself.
    """
    history = History()
    with running_cluster(directory, server, wals_in_bucket=(1 + seed % 3,)) as cluster:
        create_topic(cluster.bootstrap_servers, TOPIC, PARTITIONS)
        loads = all_loads(cluster.bootstrap_servers, TOPIC, PARTITIONS, history, per_s=per_s, log_directory=directory)
        watermarks = Watermarks(cluster.bootstrap_servers, TOPIC, PARTITIONS)
        happened: Counter[Fault] = Counter()
        with loading(loads):
            watermarks.start()
            try:
                _suffer(cluster, seed, seconds, happened, say)
            finally:
                watermarks.stop()
            say("faults are over")
        problems = [f"{load.name}: {error}" for load in loads for error in load.errors]
        problems += watermarks.problems
        assert not problems, "\n".join(problems[:20])
        check(history, read_topic(cluster.bootstrap_servers, TOPIC, PARTITIONS))
        assert history.acknowledged_count == history.sent_count > 0
        for node in cluster.nodes.values():
            assert not node.broker.has_ended(), node.broker.log_tail()
        for node in cluster.nodes.values():
            node.broker.stop()
        _verify(server, cluster)
    return Report(
        faults=happened,
        acknowledged_records=history.acknowledged_count,
        seen_records=history.seen_count,
        watermarks=watermarks.asked,
        longest_gaps_s={load.name: load.longest_gap_s for load in loads},
    )


def _suffer(cluster: Cluster, seed: int, seconds: float, happened: Counter[Fault], say: Callable[[str], None]) -> None:
    """Both tracks, each to the end of its last fault."""
    began = time.monotonic()
    failures: list[BaseException] = []

    def track(faults: Sequence[Fault]) -> None:
        schedule = steps(seed, faults, sorted(cluster.nodes))
        try:
            while time.monotonic() < began + seconds and not failures:
                step = next(schedule)
                say(f"{time.monotonic() - began:6.1f} s: {step}")
                if _perform(cluster, step):
                    happened[step.fault] += 1
                else:
                    say("nobody took over in time")
                time.sleep(step.quiet_s)
                if faults is PROCESS_FAULTS:  # the track that starts brokers
                    _revive(cluster)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=track, args=(faults,)) for faults in (PROCESS_FAULTS, NETWORK_FAULTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cluster.network.heal()
    if not failures:
        _revive(cluster)
    if failures:
        raise failures[0]


def _perform(cluster: Cluster, step: Step) -> bool:
    """Whether it came about; returns when it is over."""
    node = cluster.nodes[step.node_id]
    network = cluster.network
    match step.fault:
        case Fault.KILL:
            node.broker.kill()
            time.sleep(step.lasts_s)
            _start(node)
        case Fault.LOSE:
            node.broker.kill()
            took_over = _wait_taken_over(cluster, node.node_id)
            time.sleep(step.lasts_s)
            _start(node)
            return took_over
        case Fault.PAUSE:
            node.pause()
            time.sleep(step.lasts_s)
            node.resume()
        case Fault.RESTART:
            _restart(node, step.lasts_s)
        case Fault.ROLL:
            for each in cluster.nodes.values():
                _restart(each, step.lasts_s)
        case Fault.RESET_CLIENTS:
            network.reset(node.clients)
        case Fault.RESET_CONTROLLER:
            network.reset(node.controller)
        case Fault.RESET_STORE:
            network.reset(node.store)
        case _:
            with _lasting(cluster, node, step):
                time.sleep(step.lasts_s)
    return True


@contextlib.contextmanager
def _lasting(cluster: Cluster, node: FaultyNode, step: Step) -> Iterator[None]:
    """A fault of the network that lasts as long as the block."""
    match step.fault:
        case Fault.SLOW_CLIENTS:
            node.clients.delay_s = step.delay_ms / 1_000
        case Fault.SLOW_STORE:
            node.store.delay_s = step.delay_ms / 1_000
        case Fault.CUT_CLIENTS:
            node.clients.is_cut = True
        case Fault.CUT_STORE:
            node.store.is_cut = True
        case Fault.CUT_CONTROLLER:
            cluster.isolate_controller(node.node_id)
        case _:
            raise AssertionError(f"{step.fault} does not last")
    try:
        yield
    finally:
        cluster.network.heal()


def _restart(node: FaultyNode, away_s: float) -> None:
    try:
        node.broker.stop()
    except AssertionError:
        if not _was_deposed(node):
            raise
    time.sleep(away_s)
    _start(node)


def _was_deposed(node: FaultyNode) -> bool:
    """Whether a broker ended since it was taken for dead, though it lived: its last words say so, and that it is to be started again."""
    said = [line for line in node.broker.log_path.read_text().splitlines() if line.startswith("tidelog: ")]
    return bool(said) and any(reason in said[-1] for reason in _DEPOSED)


def _revive(cluster: Cluster) -> None:
    """Start brokers again that were deposed, as whoever supervises them does. Raises AssertionError where one ended otherwise."""
    for node in cluster.nodes.values():
        if node.broker.running and node.broker.has_ended():
            assert _was_deposed(node), f"node {node.node_id} ended by itself:\n{node.broker.log_tail()}"
            node.broker.kill()
            _start(node)


def _wait_taken_over(cluster: Cluster, node_id: int) -> bool:
    """Return True when clients are told of other leaders for all that a node led; False when that takes long, as on a machine out of breath."""
    others = ",".join(node.broker.bootstrap_servers for node in cluster.nodes.values() if node.node_id != node_id)
    admin = AdminClient({"bootstrap.servers": others, "log_level": 0})
    deadline = time.monotonic() + _TAKEN_OVER_WITHIN_S
    while True:
        with contextlib.suppress(KafkaException):  # the one that was asked is away as well
            topic = admin.list_topics(TOPIC, timeout=2.0).topics[TOPIC]
            led = {partition.leader for partition in topic.partitions.values()}
            if topic.error is None and not led & {node_id, -1}:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _start(node: FaultyNode) -> None:
    for _ in range(_STARTS):
        node.broker.start()
        try:
            node.broker.wait_ready()
        except AssertionError:
            # Others began to recover its WAL just before it came up: it is fenced, and the next start is not.
            if not node.broker.has_ended() or not _was_deposed(node):
                raise
            node.broker.kill()
        else:
            return
    raise AssertionError(f"node {node.node_id} did not come up in {_STARTS} starts:\n{node.broker.log_tail()}")


def _verify(server: S3Server, cluster: Cluster) -> None:
    """`tidelog verify` finds nothing wrong in the bucket."""
    result = subprocess.run(
        [sys.executable, "-m", "broker", "verify", "--bucket", server.uri(cluster.bucket, PREFIX)],
        capture_output=True, text=True, check=False, timeout=_VERIFIED_WITHIN_S,
        env={**cluster.nodes[1].broker.environment},
    )  # fmt: skip
    assert result.returncode == 0, f"verification ended with {result.returncode}:\n{result.stdout}{result.stderr}"
