"""The tables of settings for people and programs: text, JSON, and docs/configuration.md.

`python -m broker.config_reference` prints the document (`make docs` writes it); a test holds it against the file.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from broker.config import ENVIRONMENT_PREFIX, SETTINGS
from broker.setting import INT64_MAX, Kind, Setting
from broker.topic_config import TOPIC_SETTINGS, TopicSetting

__all__ = ["as_json", "as_markdown", "as_text"]

_WIDTH = 100


def as_text() -> str:
    """The broker's settings, one paragraph each."""
    lines: list[str] = []
    for section, settings in groupby(SETTINGS.values(), key=lambda setting: setting.section):
        lines += [f"# {section}", ""]
        for setting in settings:
            facts = [kind_name(setting), *_range_of(setting)]
            if setting.unit:
                facts.append(setting.unit)
            if setting.dynamic:
                facts.append("dynamic")
            lines.append(f"{setting.name} = {setting.text(setting.default)}  ({'; '.join(facts)})")
            lines += textwrap.wrap(setting.doc, _WIDTH, initial_indent="    ", subsequent_indent="    ")
        lines.append("")
    return "\n".join(lines).rstrip()


def as_json() -> str:
    """The broker's settings as an array of objects."""
    return json.dumps([_facts(setting) for setting in SETTINGS.values()], indent=2, ensure_ascii=False)


def _facts(setting: Setting) -> dict[str, Any]:
    return {
        "name": setting.name,
        "environment": environment_name(setting),
        "section": setting.section,
        "type": kind_name(setting),
        "default": setting.default,
        "unit": setting.unit or None,
        "least": setting.least,
        "most": setting.most,
        "choices": list(setting.choices) or None,
        "dynamic": setting.dynamic,
        "meaning": setting.doc,
    }


def kind_name(setting: Setting) -> str:
    """The type as Kafka's own reference names it."""
    return setting.kind.name.lower()


def environment_name(setting: Setting) -> str:
    """The variable that overrides it."""
    return ENVIRONMENT_PREFIX + setting.name.upper().replace(".", "_")


def _range_of(setting: Setting) -> list[str]:
    if setting.choices or (setting.kind not in (Kind.BOOLEAN, Kind.STRING, Kind.LIST) and setting.least is not None):
        return [setting.allowed]
    return []


_INTRODUCTION = """\
# Configuration

Written by `make docs` from the tables in `broker/config.py` and `broker/topic_config.py`: change those.

## How settings are given

`tidelog serve -c tidelog.toml` reads a TOML file. `num.partitions = 3`, `"num.partitions" = 3`, and a table `[num]` with
`partitions = 3` are the same there. Later sources win:

1. the default,
2. the file,
3. the environment: `TIDELOG_NUM_PARTITIONS=3` is `num.partitions`; sizes may have units (`64MiB`), here and in the file,
4. the command line: `--set num.partitions=3`.

A name that is not known, in any of these places, and a value that is not allowed are refused at the start, all in one message
that says what is allowed. `tidelog config` lists what is below, `tidelog config --json` for programs.

With `--nodes N` several nodes are run on one machine: [operations.md](operations.md#on-one-machine) tells what each gets of the settings.

Settings that are *dynamic* can be altered while the broker runs, with IncrementalAlterConfigs or AlterConfigs (`kafka-configs --alter
--entity-type brokers`, with `--entity-name 1` for one broker or `--entity-default` for all). What is altered is kept in the metadata log, holds
at once, survives restarts, and wins over everything above; one broker's own wins over that of all. Others are refused as read-only.
"""

_TOPICS = """\
## Topic configurations

They are set with CreateTopics, and changed with IncrementalAlterConfigs or AlterConfigs (`kafka-configs --alter --entity-type
topics`). A change holds from the next request on, also for partitions that are open, and survives restarts. The
default of a topic configuration is the broker's setting that is named with it.

### With effect
"""

_NO_EFFECT = """\
### Without effect

All other topic configurations of Kafka are checked, kept and told, so that tools which set them work. They change nothing here,
and DescribeConfigs says so in their documentation. Names that Kafka does not know are refused.
"""


def as_markdown() -> str:
    """docs/configuration.md."""
    parts = [_INTRODUCTION, "## The broker's settings\n"]
    for section, settings in groupby(SETTINGS.values(), key=lambda setting: setting.section):
        parts.append(f"### {section}\n")
        parts.append(_table(_BROKER_HEAD, map(_broker_row, settings)))
    parts += [_TOPICS, _table(_TOPIC_HEAD, (_topic_row(row) for row in TOPIC_SETTINGS.values() if row.has_effect))]
    parts += [
        _NO_EFFECT,
        _table(_TOPIC_HEAD, (_topic_row(row) for row in TOPIC_SETTINGS.values() if not row.has_effect)),
    ]
    return "\n".join(parts)


_BROKER_HEAD = ("name", "type", "default", "unit", "dynamic", "meaning")
_TOPIC_HEAD = ("name", "type", "default", "unit", "meaning")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _broker_row(setting: Setting) -> tuple[str, ...]:
    return (
        f"`{setting.name}`",
        _type_cell(setting),
        _value(setting),
        setting.unit,
        "yes" if setting.dynamic else "",
        setting.doc,
    )


def _topic_row(row: TopicSetting) -> tuple[str, ...]:
    doc = row.doc + (f" Default: the broker's `{row.broker_name}`." if row.has_effect and row.broker_name else "")
    doc += " Kafka 4 knows it no more." if row.is_removed else ""
    return (f"`{row.name}`", _type_cell(row), _value(row), row.unit, doc)


def _type_cell(setting: Setting) -> str:
    return ", ".join([kind_name(setting), *_range_of(setting)])


def _value(setting: Setting) -> str:
    if setting.default == INT64_MAX:
        return f"{INT64_MAX} (no bound)"
    text = setting.text(setting.default)
    return f"`{text}`" if text else "empty"


if __name__ == "__main__":
    print(as_markdown(), end="")
