"""`python -m protocol`."""

from __future__ import annotations

import pytest

from protocol.__main__ import main
from protocol.apis import API


def test_list_names_every_api_and_its_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(API)
    assert lines[1].split() == ["1", "Fetch", "v4-18,", "flexible", "from", "v12"]


def test_show_prints_the_four_functions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "Fetch", "12"]) == 0
    shown = capsys.readouterr().out
    for name in ("decode_FetchRequest", "encode_FetchRequest", "decode_FetchResponse", "encode_FetchResponse"):
        assert f"def {name}_v12(" in shown


@pytest.mark.parametrize(
    ("arguments", "advice"), [(["show", "Fetsch", "12"], "protocol list"), (["show", "Fetch", "3"], "v4-18")]
)
def test_what_is_not_spoken_is_said_with_advice(
    arguments: list[str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert advice in capsys.readouterr().err
