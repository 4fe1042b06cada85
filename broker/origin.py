"""Refuses to run with packages that are not this product's.

The five packages have short top-level names, which other distributions use as well. One of those, found first on the
path, would replace a part of the broker; better not to start.
"""

from __future__ import annotations

import importlib
from pathlib import Path

__all__ = ["ForeignPackage", "check_packages"]

PACKAGES = ("broker", "controller", "protocol", "s3stream", "wal")


class ForeignPackage(Exception):
    """One of the product's packages was loaded from somewhere else; says which, from where, and what to do."""


def check_packages() -> None:
    """Check that all packages lie side by side.

    Raises:
        ForeignPackage: one does not.
    """
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        file = importlib.import_module(name).__file__
        found = None if file is None else Path(file).resolve().parent
        if found != home / name:
            raise ForeignPackage(
                f"package {name!r} was loaded from {found}, not from {home / name}: another distribution or a directory on "
                "the path has the same name. Install tidelog into a virtual environment of its own (pipx does that), and "
                "start it from a directory without such packages."
            )
