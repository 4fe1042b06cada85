"""Tools that check what is in deploy/: built by `make deploy-tools`, or Debian's.

A tool that is not here is a skipped test with its reason; with CI=true a failed one, since there all are made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["DEPLOY", "ROOT", "built", "installed", "run"]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def built(tool: str) -> Path:
    """Where `make deploy-tools` put a tool; or a skipped test, with CI=true a failed one."""
    directory = ROOT / "build" / "deploy" / tool
    if not (directory / ".built").exists():
        log = directory / "build.log"
        reason = log.read_text(errors="replace").strip() if log.exists() else ""
        _missing(f"{tool} is not made: {reason.splitlines()[-1] if reason else 'make deploy-tools'}")
    return directory


def installed(program: str, package: str) -> str:
    """A program of Debian's; or a skipped test, with CI=true a failed one."""
    found = shutil.which(program)
    if found is None:
        _missing(f"there is no {program} here: sudo make system-packages installs Debian's {package}")
    return str(found)


def beside_python(program: str) -> str:
    """A program that came with the development dependencies."""
    return str(Path(sys.executable).parent / program)


def run(*command: str | Path, stdin: str = "") -> str:
    """What a command says; fails the test with all of it where it does not succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def _missing(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
