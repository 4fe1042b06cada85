"""Reads a Dockerfile, as far as ours goes, and carries its steps out in a directory that holds a plain Debian, without a container engine.

Always true:
- An instruction, option or form that is not understood is an error: nothing of the file is passed over.
- Steps run in a chroot with processes of its own (`unshare`), as root, with the environment that the file gives, and what this machine
  needs to reach its registries. Only paths that `.dockerignore` lets through can be copied.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Image", "Instruction", "Stage", "build", "in_context", "parse"]

_NEEDED_TO_REACH_REGISTRIES = re.compile(
    r"PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST)|(https?|no)_proxy", re.IGNORECASE
)
LENT_AUTHORITIES = "/run/authorities.pem"
"""Where a root has, while it is made, the certificates by which this machine's pip trusts its registry, where it is told of any."""

STEP_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its name, its options (`--from=…`), and the rest as text."""

    name: str
    options: Mapping[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        """The rest as an array in JSON (exec form), or split at blanks."""
        if self.text.startswith("["):
            words: list[str] = json.loads(self.text)
            return words
        return shlex.split(self.text)


@dataclass(frozen=True, slots=True)
class Stage:
    """What begins with a FROM."""

    base: str
    name: str | None
    instructions: Sequence[Instruction]


def parse(text: str) -> list[Stage]:
    """The stages of a Dockerfile."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        options: dict[str, str] = {}
        while match := re.match(r"--([a-z-]+)=(\S+)\s+", rest.lstrip()):
            options[match[1]] = match[2]
            rest = rest.lstrip()[match.end() :]
        rest = rest.strip()
        if name == "FROM":
            base, *alias = rest.split()
            assert not alias or alias[0] == "AS", line
            stages.append(Stage(base, alias[1] if alias else None, []))
        else:
            stages[-1].instructions.append(Instruction(name, options, rest))  # type: ignore[attr-defined]
    return stages


@dataclass(slots=True, kw_only=True)
class Image:
    """What a build leaves."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    directory: str = "/"
    volumes: list[str] = field(default_factory=list)
    ports: set[int] = field(default_factory=set)
    healthcheck: list[str] = field(default_factory=list)
    healthcheck_options: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "SIGTERM"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def build(dockerfile: Path, context: Path, bases: Mapping[str, Path], work: Path) -> Image:
    """Carry out all stages in roots of their own, made of `bases` (archives, by the name that FROM gives); returns the last one."""
    roots: dict[str, Path] = {}
    image: Image | None = None
    for number, stage in enumerate(parse(dockerfile.read_text())):
        image = Image(root=work / str(number))
        image.root.mkdir()
        subprocess.run(["tar", "--extract", "--file", bases[stage.base], "--directory", image.root], check=True)
        shutil.copyfile("/etc/resolv.conf", image.root / "etc" / "resolv.conf")
        if authorities := os.environ.get("PIP_CERT"):
            shutil.copyfile(authorities, image.root / LENT_AUTHORITIES.lstrip("/"))
        for instruction in stage.instructions:
            _carry_out(instruction, image, context, roots)
        (image.root / LENT_AUTHORITIES.lstrip("/")).unlink(missing_ok=True)
        if stage.name is not None:
            roots[stage.name] = image.root
    assert image is not None, "there is no FROM"
    return image


def _carry_out(instruction: Instruction, image: Image, context: Path, roots: Mapping[str, Path]) -> None:
    match instruction.name:
        case "RUN":
            _run(instruction, image)
        case "COPY":
            source = roots[instruction.options["from"]] if "from" in instruction.options else context
            _copy(instruction, image, source, ignored="from" not in instruction.options)
        case "ENV":
            for word in instruction.words:
                name, _, value = word.partition("=")
                image.environment[name] = value
        case "WORKDIR":
            image.directory = instruction.text
            (image.root / image.directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = instruction.text
        case "VOLUME":
            image.volumes += instruction.words
        case "EXPOSE":
            image.ports.update(map(int, instruction.words))
        case "HEALTHCHECK":
            kind, _, rest = instruction.text.partition(" ")
            assert kind == "CMD", instruction.text
            image.healthcheck = json.loads(rest)
            image.healthcheck_options = instruction.options
        case "STOPSIGNAL":
            image.stop_signal = instruction.text
        case "ENTRYPOINT":
            image.entrypoint = json.loads(instruction.text)
        case "CMD":
            image.command = json.loads(instruction.text)
        case _:
            raise AssertionError(f"{instruction.name} is not understood here")


def _run(instruction: Instruction, image: Image) -> None:
    assert not instruction.options, "RUN without options only"
    reach = {name: value for name, value in os.environ.items() if _NEEDED_TO_REACH_REGISTRIES.fullmatch(name)}
    if "PIP_CERT" in os.environ:
        reach["PIP_CERT"] = LENT_AUTHORITIES
    done = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={image.root}/proc"),
            *("chroot", str(image.root), "/bin/sh", "-c", f"cd {shlex.quote(image.directory)} && {instruction.text}"),
        ],
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **reach, **image.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=STEP_TIMEOUT_S,
        text=True,
    )
    assert done.returncode == 0, f"RUN {instruction.text}\nended with {done.returncode}:\n{done.stdout[-4000:]}"


def _copy(instruction: Instruction, image: Image, source: Path, *, ignored: bool) -> None:
    assert set(instruction.options) <= {"from"}, instruction.options
    *wanted, to = instruction.words
    target = image.root / os.path.join(image.directory, to).lstrip("/")
    into_directory = to.endswith("/") or len(wanted) > 1
    for one in wanted:
        path = source / one.lstrip("/")
        if not path.is_dir():
            assert not ignored or in_context(source, path), f"COPY {one}: .dockerignore keeps it out"
            place = target / path.name if into_directory else target
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)
            continue

        def left_out(directory: str, names: list[str]) -> set[str]:
            return {name for name in names if ignored and not in_context(source, Path(directory) / name)}

        assert left_out(str(path.parent), [path.name]) == set(), f"COPY {one}: .dockerignore keeps it out"
        shutil.copytree(path, target, symlinks=True, ignore=left_out, dirs_exist_ok=True)


def in_context(context: Path, path: Path) -> bool:
    """Whether `.dockerignore` lets a path through: of the patterns that match it, or a directory above it, the last one decides."""
    relative = path.relative_to(context)
    names = [str(relative), *map(str, relative.parents)]
    kept = True
    for line in (context / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        keeps = pattern.startswith("!")
        expression = _expression(pattern.lstrip("!").strip("/"))
        if any(expression.fullmatch(name) for name in names):
            kept = keeps
    return kept


def _expression(pattern: str) -> re.Pattern[str]:
    translated = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
    return re.compile(translated)
