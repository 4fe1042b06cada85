"""The programs of docs/quickstart.md run as they stand there, but for the address of the broker."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.interop.clients.base import DEADLINE_S, Client
from tests.interop.clients.confluent import Confluent
from tests.interop.clients.driver import BUILT, FranzGo, Java, KafkaJs, java_command
from tests.interop.clients.kcat import Kcat
from tests.interop.conftest import installed

pytestmark = pytest.mark.interop

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "docs" / "quickstart.md"
INTEROP = Path(__file__).parent


def program(language: str) -> str:
    """The one block of code in a language."""
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", QUICKSTART.read_text(), re.DOTALL | re.MULTILINE)
    return str(found)


def in_shell(source: Path) -> tuple[Sequence[str], Path]:
    return ["bash", "-euo", "pipefail", str(source)], source.parent


def in_python(source: Path) -> tuple[Sequence[str], Path]:
    return [sys.executable, str(source)], source.parent


def in_java(source: Path) -> tuple[Sequence[str], Path]:
    return [*java_command(), str(source)], source.parent


def in_go(source: Path) -> tuple[Sequence[str], Path]:
    return ["go", "run", str(source)], INTEROP / "go"  # whose go.mod has what it imports


def in_javascript(source: Path) -> tuple[Sequence[str], Path]:
    # Node.js finds modules from the working directory where a program does not come from a file.
    return ["node", "--input-type=module", "--eval", source.read_text()], BUILT / "javascript"


LANGUAGES: dict[str, tuple[type[Client], str, Callable[[Path], tuple[Sequence[str], Path]]]] = {
    "shell": (Kcat, "hello.sh", in_shell),
    "python": (Confluent, "hello.py", in_python),
    "java": (Java, "Hello.java", in_java),
    "go": (FranzGo, "hello.go", in_go),
    "javascript": (KafkaJs, "hello.mjs", in_javascript),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_program_of_the_quick_start(language: str, bootstrap: str, confluent: Confluent, tmp_path: Path) -> None:
    client, name, start = LANGUAGES[language]
    installed(client(bootstrap))
    text = program(language)
    assert "localhost:9092" in text
    source = tmp_path / name
    source.write_text(text.replace("localhost:9092", bootstrap))
    command, directory = start(source)
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=3 * DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a: hello, tide", "b: hello again", "a: and again"]
    # It leaves the group with everything committed, so a second run would read only what it sends itself.
    assert confluent.committed(f"hello-{language}", f"readers-{language}") == {0: 3}


def test_every_block_of_code_is_run() -> None:
    languages = re.findall(r"^```(\w+)$", QUICKSTART.read_text(), re.MULTILINE)
    assert sorted(languages) == sorted([*LANGUAGES, "console"])
