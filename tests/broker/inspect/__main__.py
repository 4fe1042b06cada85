"""Write the golden files of test_inspect.py anew: `python -m tests.broker.inspect`. Look at what git shows then."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from broker.__main__ import main
from tests.broker.inspect.test_inspect import GOLDEN, SHOWN, without_chance
from tests.broker.kept import crashed

with tempfile.TemporaryDirectory() as directory:
    kept = crashed(Path(directory))
    for golden, arguments in SHOWN.items():
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            main(["--log-level", "error", "inspect", *map(str, arguments), "--data", str(kept)])
        (GOLDEN / f"{golden}.txt").write_text(without_chance(output.getvalue(), kept))
