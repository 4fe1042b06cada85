"""Which WAL is a node's, remembered in the bucket itself: one small object per node, written once. Pure.

Always true: it is JSON, for people's eyes, and of a version; it never changes, so it needs no lock.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from wal.errors import WalCorrupt, WalMismatch, WalUnsupportedFormat

__all__ = ["WalIdentity", "pack_identity", "read_identity"]

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WalIdentity:
    """What a node finds again."""

    wal_id: str
    cluster_id: str
    node_id: int

    def check(self, *, cluster_id: str, node_id: int, key: str) -> None:
        """Raises WalMismatch where it is not that node's."""
        if (self.cluster_id, self.node_id) != (cluster_id, node_id):
            raise WalMismatch(
                f"{key} belongs to node {self.node_id} of cluster {self.cluster_id!r}, this is node {node_id} of cluster "
                f"{cluster_id!r}: give each cluster a prefix of its own in wal.uri, or correct cluster.id"
            )


def pack_identity(identity: WalIdentity) -> bytes:
    """The object."""
    return json.dumps(
        {
            "format": FORMAT_VERSION,
            "wal_id": identity.wal_id,
            "cluster_id": identity.cluster_id,
            "node_id": identity.node_id,
        }
    ).encode()


def read_identity(data: bytes, key: str) -> WalIdentity:
    """What the object says.

    Raises:
        WalUnsupportedFormat: a newer version wrote it.
        WalCorrupt: it is something else.
    """
    try:
        found = json.loads(data)
        version = int(found["format"])
        if version <= FORMAT_VERSION:
            bytes.fromhex(found["wal_id"])
            return WalIdentity(
                wal_id=str(found["wal_id"]), cluster_id=str(found["cluster_id"]), node_id=int(found["node_id"])
            )
    except (ValueError, KeyError, TypeError) as error:
        raise WalCorrupt(
            f"{key} does not say which WAL is this node's ({error}): restore the object, or abandon this WAL"
        ) from error
    raise WalUnsupportedFormat(
        f"{key} has format version {version}, this program reads version {FORMAT_VERSION}: start it with a newer Tidelog"
    )
