"""Structured logs: what a line looks like, what clients cannot do to it, and that all code logs the same way."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from pathlib import Path

import pytest

from broker.logs import BURST_LINES, MAX_EVENTS, MAX_VALUE_LENGTH, EventFormatter, LogFigures, RateLimit, configured
from broker.node import Node
from tests.broker.wire import Wire, eventually

ROOT = Path(__file__).parents[2]
PACKAGES = ("broker", "controller", "protocol", "s3stream", "wal")


def record(message: str, *args: object, level: int = logging.WARNING, name: str = "tidelog.test") -> logging.LogRecord:
    made = logging.LogRecord(name, level, __file__, 1, message, args, None)
    made.created = 1_770_091_506.789
    return made


def test_a_line_of_logfmt() -> None:
    line = EventFormatter("logfmt").format(
        record("closing a connection: %(reason)s (%(client)s)", {"client": "10.0.0.1:5", "reason": 'it said "hello"'})
    )
    assert line == (
        "time=2026-02-03T04:05:06.789Z level=warning logger=tidelog.test "
        'event="closing a connection" client=10.0.0.1:5 reason="it said \\"hello\\""'
    )


def test_a_line_of_json() -> None:
    line = EventFormatter("json").format(record("recovered: %(size)d bytes", {"size": 7, "last": None}))
    assert json.loads(line) == {
        "time": "2026-02-03T04:05:06.789Z",
        "level": "warning",
        "logger": "tidelog.test",
        "event": "recovered",
        "size": 7,
        "last": None,
    }


def test_where_several_nodes_write_each_line_tells_whose_it_is() -> None:
    line = EventFormatter("logfmt", 2).format(record("recovered: %(size)d bytes", {"size": 7}))
    assert line.endswith(" logger=tidelog.test node=2 event=recovered size=7")


def test_a_program_with_logging_of_its_own_sees_a_sentence() -> None:
    made = record("recovered: %(size)d bytes", {"size": 7})
    assert made.getMessage() == "recovered: 7 bytes"


def test_what_libraries_log_is_an_event_as_it_stands() -> None:
    line = EventFormatter("json").format(record("retry %d of %s", 3, "GET", name="urllib3"))
    assert json.loads(line)["event"] == "retry 3 of GET"


@pytest.mark.parametrize("log_format", ["logfmt", "json"])
@pytest.mark.parametrize("said", ["a\nlevel=error event=forged", "\r\n\x1b[2J\x07", "\u2028 \u202e\x85", "'\"\\=", ""])
def test_no_client_can_forge_a_line(log_format: str, said: str) -> None:
    line = EventFormatter(log_format).format(record("refused: %(reason)s", {"reason": said}))
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    if log_format == "json":
        assert json.loads(line)["reason"] == said
    else:
        assert re.findall(r"(?:^| )(\w+)=(?:\"(?:[^\"\\]|\\.)*\"|[^ \"]+)", line) == [
            "time",
            "level",
            "logger",
            "event",
            "reason",
        ]


def test_long_values_are_cut() -> None:
    line = EventFormatter("logfmt").format(record("refused: %(reason)s", {"reason": "x" * 100_000}))
    assert len(line) < MAX_VALUE_LENGTH + 200


def test_a_failure_brings_its_traceback_in_the_same_line() -> None:
    made = record("a request failed: %(client)s", {"client": "c"})
    try:
        raise KeyError("missing")
    except KeyError as error:
        made.exc_info = (KeyError, error, error.__traceback__)
    line = EventFormatter("json").format(made)
    fields = json.loads(line)
    assert fields["error"] == "KeyError: 'missing'"
    assert 'raise KeyError("missing")' in fields["traceback"]
    assert len(EventFormatter("logfmt").format(made).splitlines()) == 1


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_one_event_is_written_so_many_times_and_others_are_not_touched() -> None:
    clock, figures = Clock(), LogFigures()
    limit = RateLimit(clock, figures)
    flood = [limit.filter(record("refused: %(reason)s", {"reason": n})) for n in range(1000)]
    assert flood == [True] * BURST_LINES + [False] * (1000 - BURST_LINES)
    assert limit.filter(record("something else"))
    assert (figures.lines["warning"], figures.suppressed_lines) == (BURST_LINES + 1, 1000 - BURST_LINES)

    clock.now_s += 1
    late = record("refused: %(reason)s", {"reason": "again"})
    assert limit.filter(late)
    assert f"suppressed={1000 - BURST_LINES}" in EventFormatter("logfmt").format(late)
    assert not limit.filter(record("refused: %(reason)s", {"reason": "again"}))
    clock.now_s += 1
    assert limit.filter(late := record("refused: %(reason)s", {"reason": "again"}))
    assert "suppressed=1" in EventFormatter("logfmt").format(late)


def test_events_without_end_share_a_limit() -> None:
    limit = RateLimit(Clock(), LogFigures())
    written = sum(limit.filter(record(f"event {n}")) for n in range(2 * MAX_EVENTS))
    assert written == MAX_EVENTS + BURST_LINES


@pytest.mark.parametrize(("level", "written"), [("debug", ["clock skew", "detail", "failed"]), ("error", ["failed"])])
def test_libraries_are_heard_from_warnings_on(level: str, written: list[str]) -> None:
    stream = io.StringIO()
    with configured("json", level, stream=stream):
        logging.getLogger("botocore.auth").debug("credentials: secret")
        logging.getLogger("botocore.auth").warning("clock skew")
        logging.getLogger("tidelog.test").debug("detail")
        logging.getLogger("tidelog.test").error("failed")
        assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == written


async def test_clients_that_send_garbage_without_end_leave_few_lines(node: Node) -> None:
    closed = node.running.server.metrics.connections_closed
    stream = io.StringIO()
    with configured("json", "info", stream=stream):
        for _ in range(3 * BURST_LINES):
            async with await Wire.connect(node.bootstrap_servers) as wire:
                wire.writer.write(b"GET / HTTP/1.1\r\n\r\n")
                assert await wire.closed_by_broker()
        await eventually(lambda: closed["request"] == 3 * BURST_LINES, "the last close")
        events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert BURST_LINES <= events.count("closing a connection") < 2 * BURST_LINES


# ---- the code -------------------------------------------------------------------------------------------------------


def log_calls() -> list[tuple[str, ast.Call]]:
    found: list[tuple[str, ast.Call]] = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id in ("log", "_log")
                    and node.func.attr in ("debug", "info", "warning", "error", "exception", "critical")
                ):
                    found.append((f"{path.relative_to(ROOT)}:{node.lineno}", node))
    return found


def test_all_code_logs_events_with_named_values() -> None:
    """`log.warning("event: … %(name)s …", {"name": value})`; see `broker.logs`."""
    calls = log_calls()
    assert len(calls) > 15
    for place, call in calls:
        message = call.args[0]
        assert isinstance(message, ast.Constant), f"{place}: the message is a literal"
        text = str(message.value)
        event, colon, details = text.partition(":")
        assert "%" not in event, f"{place}: values come behind the event and a colon"
        named = set(re.findall(r"%\((\w+)\)[a-z]", details))
        assert not re.sub(r"%\(\w+\)[a-z]", "", details).count("%"), f"{place}: values have names"
        if len(call.args) == 1:
            assert not colon, f"{place}: details without values"
            continue
        (values,) = call.args[1:]
        assert isinstance(values, ast.Dict), f"{place}: the values are one dict"
        keys = {key.value for key in values.keys if isinstance(key, ast.Constant)}
        assert len(keys) == len(values.keys), f"{place}: names are literals"
        assert named <= keys, f"{place}: {named - keys} is not given"
        taken = {"time", "level", "logger", "event", "suppressed", "traceback"}
        assert not taken & keys, f"{place}: {taken & keys} are fields of every line"


def test_all_loggers_are_the_products() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name in re.findall(r"^_?log\b.*getLogger\((.*)\)", path.read_text(), re.MULTILINE):
                assert name.startswith('"tidelog.'), path
