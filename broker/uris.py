"""URIs as the operator wrote them, made absolute. Pure, but for the working directory."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from wal.config import OBJECTS_PREFIX

__all__ = ["absolute_uri"]


def absolute_uri(uri: str) -> str:
    """`file:data/wal?…` and `file://./data/wal?…` → `file:///…`, from the working directory; behind `objects+` as well."""
    if uri.startswith(OBJECTS_PREFIX):
        return OBJECTS_PREFIX + absolute_uri(uri.removeprefix(OBJECTS_PREFIX))
    parts = urlsplit(uri)
    if parts.scheme != "file" or (parts.path.startswith("/") and parts.netloc not in (".", "..")):
        return uri
    path = Path(parts.netloc + parts.path).absolute()
    return path.as_uri() + (f"?{parts.query}" if parts.query else "")
