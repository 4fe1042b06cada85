"""The limit of open files, in a process of its own, since it is a property of the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource
from broker.file_limit import connections_that_fit
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(connections_that_fit(1000), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "says"),
    [
        (64, 4000, "1000 1256 4000"),  # raised as far as needed
        (2000, 4000, "1000 2000 4000"),  # enough
        (64, 600, "344 600 600"),  # as far as it may be, and no more connections than that
    ],
)
def test_the_soft_limit_is_raised(soft: int, hard: int, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(soft=soft, hard=hard)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == says
    assert ("need 1256 open files" in done.stderr) == (hard < 1256)
