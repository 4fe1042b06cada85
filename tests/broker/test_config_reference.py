"""The document of settings."""

from __future__ import annotations

from pathlib import Path

from broker.config import SETTINGS
from broker.config_reference import as_markdown
from broker.topic_config import TOPIC_SETTINGS

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_document_is_what_the_tables_say() -> None:
    assert DOCUMENT.read_text() == as_markdown(), "run `make docs`"


def test_every_setting_is_in_the_document() -> None:
    lines = DOCUMENT.read_text().splitlines()
    for name in (*SETTINGS, *TOPIC_SETTINGS):
        assert any(line.startswith(f"| `{name}` | ") for line in lines), name
