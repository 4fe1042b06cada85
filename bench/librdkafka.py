"""Builds `rdkafka_performance`, librdkafka's own load generator, from librdkafka's release source.

Always true:
- The version is pinned; nothing is installed on the system; everything lands under `build/librdkafka-<version>`.
- The source comes from the npm package `node-rdkafka`, which ships librdkafka's release whole; npm fetches it and checks
  its integrity.
- Optional libraries (TLS, SASL, curl, zstd) are left out: the benchmark needs none of them, and a build
  without them is the same on every machine.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

__all__ = ["LIBRDKAFKA_VERSION", "LibrdkafkaUnavailable", "rdkafka_performance"]

LIBRDKAFKA_VERSION = "2.12.0"
_NPM_PACKAGE = "node-rdkafka@3.6.1"
_BUILD_TIMEOUT_S = 1200

_CONFIGURE_OPTIONS = (
    "--disable-ssl",
    "--disable-gssapi",
    "--disable-sasl",
    "--disable-curl",
    "--disable-zstd",
    "--disable-lz4-ext",
    "--disable-c11threads",
)


class LibrdkafkaUnavailable(Exception):
    """rdkafka_performance cannot be built here; the message says what is missing."""


def rdkafka_performance(build_dir: Path) -> Path:
    """Path of the built program; builds it at the first call (one to two minutes).

    Raises:
        LibrdkafkaUnavailable: no compiler, no npm, or no network and no source fetched before.
    """
    root = build_dir / f"librdkafka-{LIBRDKAFKA_VERSION}"
    program = root / "examples" / "rdkafka_performance"
    if program.exists():
        return program
    for tool in ("gcc", "make"):
        if shutil.which(tool) is None:
            raise LibrdkafkaUnavailable(f"{tool} is needed to build librdkafka: apt-get install build-essential")
    if not (root / "configure").exists():
        _fetch(build_dir, root)
    _run(["./configure", *_CONFIGURE_OPTIONS], root)
    _run(["make", "-j2", "-C", "src", "librdkafka.a"], root)
    _run(["make", "-C", "examples", "rdkafka_performance"], root)
    return program


def _fetch(build_dir: Path, root: Path) -> None:
    download = build_dir / "librdkafka-download"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    if shutil.which("npm") is None:
        raise LibrdkafkaUnavailable(f"npm is needed to fetch librdkafka: install it, or unpack the release into {root}")
    _run(["npm", "pack", "--silent", _NPM_PACKAGE], download)
    [archive] = download.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(download, filter="data")
    (download / "package" / "deps" / "librdkafka").rename(root)
    shutil.rmtree(download)


def _run(command: list[str], directory: Path) -> None:
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise LibrdkafkaUnavailable(f"{' '.join(command)} failed in {directory}:\n{tail}")
