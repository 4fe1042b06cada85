"""All keys of a cluster in its bucket. No other module builds or takes apart a key.

Always true:
- Every key starts with the cluster's prefix; clusters with different prefixes share a bucket without meeting.
- Data objects are spread over 256 hash folders, because S3 scales its request rate by key prefix.
- Numbered entries are zero-padded to 20 digits, so that key order is number order.
"""

from __future__ import annotations

import re
import zlib

from s3stream.metadata import ObjectId

__all__ = ["Paths"]

_SEGMENT = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9_.=-]*\Z")
_MAX_PREFIX_LENGTH = 512
"""Half of what S3 allows for a whole key (1,024 bytes)."""


class Paths:
    """Keys under one prefix (may be empty: the whole bucket is one cluster's)."""

    __slots__ = (
        "_root",
        "cluster",
        "data_prefix",
        "floor",
        "leader",
        "log_prefix",
        "prefix",
        "snapshot_prefix",
        "wal_prefix",
    )

    def __init__(self, prefix: str = "") -> None:
        if prefix and (len(prefix) > _MAX_PREFIX_LENGTH or not all(map(_SEGMENT.match, prefix.split("/")))):
            raise ValueError(
                f"key prefix {prefix!r}: use segments of letters, digits and -_=. between single slashes,"
                f" at most {_MAX_PREFIX_LENGTH} characters, none of them starting with a dot"
            )
        self.prefix = prefix
        self._root = f"{prefix}/" if prefix else ""
        self.data_prefix = f"{self._root}data/"
        """Of all data objects; the collector lists it for orphans."""
        self.log_prefix = f"{self._root}metadata/log/"
        self.snapshot_prefix = f"{self._root}metadata/snapshot/"
        self.wal_prefix = f"{self._root}wal/log/"
        """Of all WALs that are kept here, too; see `wal.slot`."""
        self.floor = f"{self._root}metadata/floor"
        """Lowest log index that is still promised to exist."""
        self.leader = f"{self._root}metadata/leader"
        """The elected controller and its address."""
        self.cluster = f"{self._root}cluster"
        """Cluster id and format, written once."""

    def data_object(self, object_id: ObjectId) -> str:
        """Key of a stream object or stream set object."""
        return f"{self.data_prefix}{zlib.crc32(object_id.to_bytes(8, 'big')) & 0xFF:02x}/{object_id}"

    def object_id(self, key: str) -> ObjectId | None:
        """The object a listed data key belongs to; None for a key that is not ours."""
        name = key.rpartition("/")[2]
        if not (name.isascii() and name.isdigit()) or len(name) > 19:
            return None
        object_id = ObjectId(int(name))
        return object_id if key == self.data_object(object_id) else None

    def log_entry(self, index: int) -> str:
        """Key of a metadata log entry."""
        return f"{self.log_prefix}{index:020d}"

    def log_index(self, key: str) -> int | None:
        """The log index of a listed key; None for a key that is not ours."""
        return _number(self.log_prefix, key)

    def snapshot(self, index: int) -> str:
        """Key of the metadata snapshot that holds everything up to and including log entry `index`."""
        return f"{self.snapshot_prefix}{index:020d}"

    def snapshot_index(self, key: str) -> int | None:
        """The log index of a listed snapshot; None for a key that is not ours."""
        return _number(self.snapshot_prefix, key)

    def probe(self, nonce: str) -> str:
        """Key that a start's probe of conditional writes uses and deletes."""
        return f"{self._root}probe/{nonce}"


def _number(prefix: str, key: str) -> int | None:
    digits = key.removeprefix(prefix)
    if len(digits) != 20 or not (digits.isascii() and digits.isdigit()) or not key.startswith(prefix):
        return None
    return int(digits)
