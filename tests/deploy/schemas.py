"""Kubernetes' schemas as kubeconform reads them: each kind whole, in a file of its own, so that nothing is fetched from anywhere.

They are made of those that the package kubernetes-validate brings, whose version pyproject.toml pins; there kinds refer to one large file of
definitions by the address of a server.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import kubernetes_validate

__all__ = ["write_schema"]

_BROUGHT = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"


def write_schema(api_version: str, kind: str, kubernetes: str, directory: Path) -> None:
    """Write the strict schema of a kind, as a version of Kubernetes such as `1.31` has it, under the name by which kubeconform looks for it."""
    group, _, version = api_version.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], version)))
    file = directory / f"{name}.json"
    if not file.exists():
        file.write_text(_whole(kubernetes, name))


@functools.cache
def _whole(kubernetes: str, name: str) -> str:
    schema = _read(kubernetes, name)
    definitions = _read(kubernetes, "_definitions")["$defs"]
    used: dict[str, Any] = {}

    def own(value: Any) -> Any:
        """The same with references to definitions in this file, which are gathered."""
        if isinstance(value, list):
            return [own(each) for each in value]
        if not isinstance(value, dict):
            return value
        if isinstance(reference := value.get("$ref"), str):
            definition = reference.rpartition("#/$defs/")[2]
            if definition not in used:
                used[definition] = None  # some contain themselves
                used[definition] = own(definitions[definition])
            return {**value, "$ref": f"#/$defs/{definition}"}
        return {key: own(each) for key, each in value.items()}

    schema = {key: value for key, value in schema.items() if key != "$id"}
    return json.dumps({**own(schema), "$defs": used})


@functools.cache
def _read(kubernetes: str, name: str) -> dict[str, Any]:
    (directory,) = _BROUGHT.glob(f"v{kubernetes}.*-local-strict")
    found: dict[str, Any] = json.loads((directory / f"{name}.json").read_text())
    return found
