"""`make compat`: run the interop tests and write docs/compatibility.md from what they did.

Always true: a mark in the table of clients is the outcome of tests that ran here, just now, with the version in its column's
head; the table of APIs is what the broker's dispatch table serves. `test_compatibility.py` checks that the committed file
is still that of the pinned versions and of the dispatch table.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

from broker import dispatch
from broker.handlers import produce
from protocol.apis import API
from tests.interop.conftest import CLIENTS

__all__ = ["DOCUMENT", "api_table", "main"]

_TESTS = ("test_round_trip.py", "test_producers.py", "test_admin.py", "test_every_group.py", "test_idempotence.py")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"

_PASSED, _FAILED, _SKIPPED = "✓", "✗", "–"


@dataclass(frozen=True, slots=True)
class Feature:
    """A row of the table: what must have passed for its mark. `case` is what follows the client in a test's parameters."""

    title: str
    tests: tuple[str, ...]
    case: str = ""
    names_cases: bool = False
    """Whether the mark is followed by the cases that passed, say the assignors."""


FEATURES = (
    *(
        Feature(f"produce and fetch, {codec}", ("test_keys_values_headers_and_timestamps_come_back",), codec)
        for codec in ("none", "gzip", "snappy", "lz4", "zstd")
    ),
    Feature("null and empty keys and values", ("test_null_keys_and_null_values", "test_empty_values_are_not_null")),
    Feature("records of 900 kB", ("test_large_records",)),
    Feature("acks 0, 1, all", ("test_every_acks_setting",)),
    Feature("fetch from the middle of a batch", ("test_fetch_from_an_offset_in_the_middle_of_a_batch",)),
    Feature("offsets by timestamp", ("test_offset_for_a_timestamp", "test_no_offset_past_the_last_timestamp")),
    Feature("idempotent producer", ("test_idempotent_producers",)),
    Feature("the same over lost answers and a crash", ("test_retries_neither_duplicate_nor_reorder",)),
    Feature(
        "groups: members come and go",
        ("test_two_members_share_and_nothing_is_lost_when_one_leaves",),
        names_cases=True,
    ),
    Feature("groups: commit and resume", ("test_a_group_goes_on_where_it_committed",)),
    Feature("groups: static members", ("test_a_static_member_comes_back_without_a_rebalance",)),
    Feature("groups: offsets as an administrator sees them", ("test_every_client_tells_what_was_committed",)),
    Feature(
        "create and delete topics",
        (
            "test_create_and_describe",
            "test_a_topic_that_exists_is_not_created_again",
            "test_an_unknown_configuration_is_refused",
            "test_a_topic_deleted_and_created_again_is_empty",
            "test_deleting_an_unknown_topic_is_refused",
        ),
    ),
    Feature("partitions, configurations, records, groups", ("test_administrators_in_other_languages",)),
    Feature("topics created by producing", ("test_producing_creates_the_topic",)),
)


Outcome = tuple[str, str, str]
"""Case (see `Feature`), mark, and the reason of a mark that is no `✓`."""


def outcomes_of(results: Iterable[Path]) -> dict[tuple[str, str], list[Outcome]]:
    """Outcomes by test and client, out of what pytest wrote."""
    outcomes = defaultdict(list)
    for case in (case for junit_xml in results for case in ElementTree.parse(junit_xml).iter("testcase")):
        test, _, parameters = case.attrib["name"].rstrip("]").partition("[")
        for client in CLIENTS:
            if parameters == client or parameters.startswith(client + "-"):
                outcomes[test, client].append((parameters[len(client) + 1 :], *_mark(case)))
    return outcomes


def _mark(case: ElementTree.Element) -> tuple[str, str]:
    for tag, mark in (("failure", _FAILED), ("error", _FAILED), ("skipped", _SKIPPED)):
        problem = case.find(tag)
        if problem is not None:
            return mark, problem.attrib["message"].splitlines()[0]
    return _PASSED, ""


def main(arguments: Sequence[str]) -> int:
    """Run the tests and write the document. `apis`: only renew its table of APIs. Files: results of pytest's --junitxml."""
    code = 0
    if list(arguments) == ["apis"]:
        text = DOCUMENT.read_text()
        DOCUMENT.write_text(text[: text.index(_APIS_HEAD)] + _apis())
    elif arguments:
        DOCUMENT.write_text(_document(outcomes_of(map(Path, arguments))))
    else:
        with tempfile.TemporaryDirectory() as directory:
            results = Path(directory) / "results.xml"
            files = [str(Path(__file__).parent / name) for name in _TESTS]
            command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={results}", *files]
            code = subprocess.run(command, check=False).returncode
            DOCUMENT.write_text(_document(outcomes_of([results])))
    print(f"wrote {DOCUMENT}")
    return code


_INTRODUCTION = """# Compatibility

Written by `make compat`, from what ran: clients against a broker, each test the same for every client
([how](../tests/interop/README.md)). ✓ passed · ✗ failed · – the client cannot do it, or the test is not for it.

## Clients

"""

_TOOLS = """
Kafka's own command line tools, of the version of the Java client, run in the same tests: `kafka-topics`, `kafka-configs`,
`kafka-consumer-groups`, `kafka-get-offsets`, the console producer and consumer, the verifiable producer and consumer. Their formatters for
`__consumer_offsets` read what groups committed here.

confluent-kafka, kafka-python and aiokafka have tests of their own for partitions, configurations, records and groups
([test_administration.py](../tests/interop/test_administration.py)).

@platformatic/kafka cannot read Snappy as Kafka's Java client, sarama, aiokafka and kafka-python frame it, from no broker. KafkaJS needs
plugins for Snappy, LZ4 and Zstandard; the tests add them.
"""

_APIS_HEAD = "## APIs\n"
_APIS_INTRODUCTION = """
What ApiVersions tells, from the broker's dispatch table. Keys and versions that are not here close the connection, as Kafka does.

"""


def _document(outcomes: Mapping[tuple[str, str], Sequence[Outcome]]) -> str:
    return _INTRODUCTION + "\n".join(_client_tables(outcomes)) + "\n" + _TOOLS + "\n" + _apis()


def _client_tables(outcomes: Mapping[tuple[str, str], Sequence[Outcome]]) -> Iterable[str]:
    clients = {name: make("") for name, make in CLIENTS.items()}
    yield "| client | version |"
    yield "|---|---|"
    for client in clients.values():
        client.check()
        yield f"| {client.name} | {client.version} |"
    yield ""
    yield "| | " + " | ".join(client.name for client in clients.values()) + " |"
    yield "|---" * (len(clients) + 1) + "|"
    reasons: list[str] = []
    for feature in FEATURES:
        cells = [_cell(outcomes, feature, name, reasons) for name in clients]
        yield f"| {feature.title} | " + " | ".join(cells) + " |"
    yield ""
    for number, reason in enumerate(reasons, 1):
        yield f"{number}. {reason}"


def _cell(
    outcomes: Mapping[tuple[str, str], Sequence[Outcome]], feature: Feature, client: str, reasons: list[str]
) -> str:
    found = [
        outcome
        for test in feature.tests
        for outcome in outcomes.get((test, client), ())
        if not feature.case or outcome[0] == feature.case
    ]
    if not found:
        return _SKIPPED
    for wanted in (_FAILED, _SKIPPED):
        for _, mark, reason in found:
            if mark == wanted:
                if reason not in reasons:
                    reasons.append(reason)
                return f"{mark} ({reasons.index(reason) + 1})"
    return f"{_PASSED} {', '.join(case for case, _, _ in found)}" if feature.names_cases else _PASSED


def _apis() -> str:
    return _APIS_HEAD + _APIS_INTRODUCTION + api_table()


def api_table() -> str:
    """The APIs that the broker serves, by key, with versions and what their handlers say of themselves."""
    lines = ["| key | API | versions | | not done, or different from Kafka's |", "|---|---|---|---|---|"]
    modules = {module.API_KEY: module for module in (*dispatch.MODULES, produce)}
    for key, module in sorted(modules.items()):
        low = produce.ADVERTISED_MIN_VERSION if module is produce else module.MIN_VERSION
        versions = str(low) if low == module.MAX_VERSION else f"{low}–{module.MAX_VERSION}"
        lines.append(f"| {key} | {API[key].name} | {versions} | {_purpose(module)} | {_differences(module)} |")
    return "\n".join(lines) + "\n"


def _purpose(module: ModuleType) -> str:
    first = _paragraphs(module)[0]
    return first.partition(": ")[2].rstrip(".").replace("|", "\\|")


def _differences(module: ModuleType) -> str:
    found = [
        text if text.startswith("Not done") else text.partition(": ")[2]
        for text in _paragraphs(module)
        if text.startswith(("Not done: ", "Deviations: ", "Deviation: "))
    ]
    return " ".join(found).replace("|", "\\|")


def _paragraphs(module: ModuleType) -> list[str]:
    return [" ".join(part.split()) for part in (module.__doc__ or "").split("\n\n")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
