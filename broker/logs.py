"""Structured logs: one line an event, logfmt or JSON, and never more lines than a disk can take.

How the code logs. A message is `event`, or `event: details`, where details name their values; the values are the one argument:

    log.warning("closing a connection: %(reason)s (%(client)s)", {"client": self.peer, "reason": reason})

A program that embeds a broker, with logging of its own, sees a sentence. Here it becomes

    time=2026-02-03T04:05:06.789Z level=warning logger=tidelog.connection event="closing a connection" client=… reason=…

Always true:
- The event is the same text each time, so that it can be searched for and counted; what differs is in the fields.
- A line is one line, whatever a client put into it: what cannot be printed is escaped, what is long is cut.
- One event is written `BURST_LINES` times, then once in `1 / LINES_PER_S` seconds: a hostile client cannot fill a disk. How many lines
  were left out is said in the next one (`suppressed=`), and counted.
- Libraries are heard from warnings on only, whatever the level: their debug lines hold credentials.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

__all__ = ["FIGURES", "FORMATS", "LEVELS", "EventFormatter", "LogFigures", "RateLimit", "configured"]

FORMATS = ("logfmt", "json")
LEVELS = ("debug", "info", "warning", "error")

BURST_LINES = 20
LINES_PER_S = 1.0
"""Per event: some 50 MB a day of the longest common lines, for an event that a client causes without end."""

MAX_EVENTS = 1000
"""Events that are told apart; ours are some dozens, but libraries put what differs into the text."""

MAX_VALUE_LENGTH = 1000
MAX_TRACEBACK_LENGTH = 8000
"""The end of it: that is where the error is."""

_PRODUCT = "tidelog"

Fields = dict[str, object]


class LogFigures:
    """What was logged by this process since its start."""

    def __init__(self) -> None:
        self.lines: Counter[str] = Counter()
        """Lines written, by level."""
        self.suppressed_lines = 0
        """Lines left out."""


FIGURES = LogFigures()
"""Of the process, as logging itself is."""


@contextmanager
def configured(
    log_format: str, level: str, *, stream: TextIO | None = None, node_id: int | None = None
) -> Iterator[None]:
    """Write the log of the whole process, as long as the block runs; with `node=`, where several write to one place."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(EventFormatter(log_format, node_id))
    least = logging.getLevelNamesMapping()[level.upper()]
    others_least = max(least, logging.WARNING)
    # Loggers of libraries may have levels of their own.
    handler.addFilter(lambda record: record.levelno >= (least if record.name.startswith(_PRODUCT) else others_least))
    handler.addFilter(RateLimit(time.monotonic, FIGURES))
    root, product = logging.getLogger(), logging.getLogger(_PRODUCT)
    former = root.level, product.level
    root.addHandler(handler)
    root.setLevel(others_least)
    product.setLevel(least)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(former[0])
        product.setLevel(former[1])


def event_of(record: logging.LogRecord) -> str:
    """What happened, without the values: the same text each time."""
    text = str(record.msg)
    if isinstance(record.args, Mapping):
        return text.partition(":")[0]
    return text


class EventFormatter(logging.Formatter):
    """One line a record."""

    def __init__(self, log_format: str, node_id: int | None = None) -> None:
        super().__init__()
        self._encode = {"logfmt": _logfmt, "json": _json}[log_format]
        self._everywhere: Fields = {} if node_id is None else {"node": node_id}

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        return self._encode(_fields(record, self, self._everywhere))


class RateLimit(logging.Filter):
    """Lets so many lines of one event through, and counts all of them."""

    def __init__(self, monotonic: Callable[[], float], figures: LogFigures) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._figures = figures
        self._lock = threading.Lock()
        self._events: dict[tuple[str, str], _Event] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write it; where some before it were not, the record tells how many."""
        now = self._monotonic()
        with self._lock:
            event = self._event(record, now)
            event.tokens = min(event.tokens + (now - event.at) * LINES_PER_S, BURST_LINES)
            event.at = now
            if event.tokens < 1:
                event.suppressed += 1
                self._figures.suppressed_lines += 1
                return False
            event.tokens -= 1
            if event.suppressed:
                record.suppressed, event.suppressed = event.suppressed, 0
            self._figures.lines[record.levelname.lower()] += 1
            return True

    def _event(self, record: logging.LogRecord, now: float) -> _Event:
        key = record.name, event_of(record)
        if key not in self._events and len(self._events) >= MAX_EVENTS:
            key = "", ""
        return self._events.setdefault(key, _Event(now))


class _Event:
    __slots__ = ("at", "suppressed", "tokens")

    def __init__(self, now: float) -> None:
        self.at = now
        self.tokens = float(BURST_LINES)
        self.suppressed = 0


# ---- from a record to a line ----------------------------------------------------------------------------------------


def _fields(record: logging.LogRecord, formatter: logging.Formatter, everywhere: Fields) -> Fields:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    fields: Fields = {
        "time": f"{moment}.{int(record.created % 1 * 1000):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        **everywhere,
    }
    if isinstance(record.args, Mapping):
        fields["event"] = event_of(record)
        fields.update(record.args)
    else:
        fields["event"] = record.getMessage()
    suppressed = getattr(record, "suppressed", 0)
    if suppressed:
        fields["suppressed"] = suppressed
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        fields.setdefault("error", f"{type(error).__name__}: {error}")
        fields["traceback"] = formatter.formatException(record.exc_info)[-MAX_TRACEBACK_LENGTH:]
    return {name: _value(name, value) for name, value in fields.items()}


def _value(name: str, value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value) or (type(value).__name__ if isinstance(value, BaseException) else "")
    most = MAX_TRACEBACK_LENGTH if name == "traceback" else MAX_VALUE_LENGTH
    return text if len(text) <= most else f"{text[:most]}…"


def _json(fields: Fields) -> str:
    return json.dumps(fields)


def _logfmt(fields: Fields) -> str:
    return " ".join(f"{name}={_logfmt_value(value)}" for name, value in fields.items())


def _logfmt_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = "" if value is None else str(value)
    if text and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    escaped = "".join(
        {'"': '\\"', "\\": "\\\\"}.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode())
        for c in text
    )
    return f'"{escaped}"'
