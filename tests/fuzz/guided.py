"""One target under Atheris: `python -m tests.fuzz.guided TARGET CORPUS [libFuzzer's options]`; started by `tests.fuzz`.

Needs `pip install -r tests/fuzz/requirements.txt`. Our packages are instrumented, and so are the functions that the codec makes.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import atheris


def main() -> None:
    name = sys.argv[1]
    with atheris.instrument_imports(include=["broker", "controller", "protocol", "s3stream", "wal", "tests.fuzz"]):
        from protocol import compiler

        load = compiler._load

        def load_instrumented(*arguments: Any) -> compiler.Codec:
            codec = load(*arguments)
            return replace(codec, call=atheris.instrument_func(codec.call))

        compiler._load = load_instrumented
        from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
