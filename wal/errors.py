"""What can go wrong in the write-ahead log, few and prescriptive: each message says what to do."""

from __future__ import annotations

__all__ = [
    "PayloadTooLarge",
    "WalConfigInvalid",
    "WalCorrupt",
    "WalDamaged",
    "WalError",
    "WalFenced",
    "WalFencedByRecoverer",
    "WalLocked",
    "WalMismatch",
    "WalUnavailable",
    "WalUnreachable",
    "WalUnsupportedFormat",
]


class WalError(Exception):
    """What every error of the write-ahead log is."""


class WalConfigInvalid(WalError):
    """The WAL's URI cannot be used as it stands."""


class WalUnavailable(WalError):
    """The WAL's place cannot be opened or created: no room, no permission, read-only."""


class WalUnreachable(WalError):
    """Another node's WAL is not to be had from here: not found, or where nobody could be kept from writing to it."""


class WalLocked(WalError):
    """Another living process has this WAL open."""


class WalMismatch(WalError):
    """The WAL found belongs to another node, another cluster or another configuration: not ours to touch."""


class WalUnsupportedFormat(WalError):
    """The WAL was written by a newer version: upgrade this node."""


class WalCorrupt(WalError):
    """What was acknowledged is provably missing or damaged. Never repaired silently."""


class WalDamaged(WalCorrupt):
    """Acknowledged frames are missing, and the rest of the log can be read: what is lost can be told (`wal.salvage`)."""


class WalFenced(WalError):
    """A write failed or somebody fenced this log: nothing more becomes durable here; restart to recover."""


class WalFencedByRecoverer(WalFenced):
    """Its node was taken for dead, so another one reads the log. There is no second process that writes here: the node may start again."""


class PayloadTooLarge(WalError):
    """The payload can never fit this WAL: raise the WAL's capacity or the arena, or send smaller batches."""

    def __init__(self, size_bytes: int, max_bytes: int) -> None:
        super().__init__(
            f"a payload of {size_bytes} bytes; this WAL takes at most {max_bytes}: raise its capacity and the arena, or send "
            "smaller batches"
        )
