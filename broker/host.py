"""Which machine this is, so that processes on it know of each other that they share its disks.

Always true: it stays the same over reboots where the machine has an id of its own, and tells nothing about it. A container without one is taken
for the machine that it runs on, as its kernel tells it until the next boot: containers share disks only where they are given the same directory, and
what is found there is checked.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["host_identity"]

_SOURCES = (Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id"))
"""The first that says something. machine-id(5) asks not to pass it on as it is."""


def host_identity(sources: tuple[Path, ...] = _SOURCES) -> str:
    """16 hex digits; empty where nothing tells."""
    for source in sources:
        try:
            text = source.read_text().strip()
        except OSError:
            continue
        if text and text != "uninitialized":
            return hashlib.sha256(f"tidelog {text}".encode()).hexdigest()[:16]
    return ""
