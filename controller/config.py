"""Settings of the controller; validated as a whole when they are made."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ControllerSettings"]

_MAY_BE_ZERO = ("retained_entries", "restore_window_ms", "entry_min_age_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """How the metadata log is kept."""

    cluster_id: str = ""
    """Required id of the cluster in the bucket, given to it if it is new; empty: whatever it is, random if it is new."""
    leader_address: str = ""
    """`host:port` by which other nodes reach this one; it is written into the leader object. Empty: alone."""
    election_timeout_ms: int = 1_500
    """A leader that does not answer for so long is replaced."""
    follow_wait_ms: int = 1_000
    """How long the leader lets a node wait for news that there are none: the interval of signs of life."""
    node_timeout_ms: int = 3_000
    """A node that the leader did not hear from for so long is taken for dead: it gets no partitions, and those that it has closed go to others."""
    session_timeout_ms: int = 2_000
    """A node that the leader did not hear from for so long is suspected: it gets no lease any more."""
    heartbeat_interval_ms: int = 500
    """How often a node shows that it lives, besides asking for what comes next."""
    lease_ms: int = 3_000
    """For how long a node may serve without having read the metadata log to its tail."""
    lease_margin_ms: int = 200
    """How much longer than its lease the leader waits before it takes a suspected node for dead."""
    balances: bool = True
    """Partitions are moved to make nodes even, and not only where they have to go; until somebody says otherwise."""
    balance_interval_ms: int = 500
    """How often the leader looks whether partitions should move."""
    max_moves: int = 1_000
    """Partitions that move at a time only to make nodes even."""
    load_interval_ms: int = 10_000
    """How often nodes tell the leader what goes through them; it goes by three reports in a row."""
    load_tolerance_percent: int = 20
    """A node may have so much more bytes in or out than the average …"""
    load_tolerance_bytes_per_s: int = 1 << 20
    """… and at least so many bytes a second, before partitions are moved away from it."""
    leader_check_interval_ms: int = 2_000
    """How often a leader that has nothing to write looks whether it still is the one."""
    start_timeout_ms: int = 120_000
    """How long a start waits for the bucket; longer than a command, since nobody waits for its answer."""
    command_timeout_ms: int = 30_000
    """How long a command waits for the bucket before it fails with `MetadataUnavailable`."""
    retry_backoff_ms: int = 100
    """First wait before a failed request is tried again; doubles up to `max_retry_backoff_ms`, with jitter."""
    max_retry_backoff_ms: int = 2_000
    """A bucket that comes back is noticed within about this time."""
    max_pending_commands: int = 20_000
    """Commands that may wait for an entry; more fail at once, so that an outage cannot fill the memory."""
    max_entry_bytes: int = 4 * 1024 * 1024
    """Commands are gathered into one entry up to about this size; one large command may exceed it."""
    snapshot_interval_entries: int = 1_000
    """A snapshot follows this many entries at the latest: bounds the requests of a start."""
    snapshot_interval_bytes: int = 16 * 1024 * 1024
    """A snapshot follows this many bytes of entries at the latest, but not before the log outgrows the last snapshot."""
    retained_entries: int = 100
    """Entries kept behind a snapshot, so that a node that is a little late need not load all of it."""
    entry_min_age_ms: int = 600_000
    """No entry is deleted before it is so old, by the store's clock: for half of it a node knows by one request where the log ends.
    Every node must have the same; 0: a look takes two requests."""
    restore_window_ms: int = 0
    """Entries and snapshots are kept that lead to any point of this past, by the store's clock; 0: no longer than needed to go on."""
    max_partitions: int = 100_000
    """Partitions of the cluster: all metadata is in every node's memory, some 2 KB for each."""
    object_id_block_size: int = 1_000
    """Object ids a node takes at a time, so that an upload does not cost an entry of its own."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            least = 0 if name in _MAY_BE_ZERO else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if self.session_timeout_ms < 2 * self.heartbeat_interval_ms:
            raise ValueError(
                "session_timeout_ms must be at least twice heartbeat_interval_ms: one sign of life may be late"
            )
        if self.retry_backoff_ms > self.max_retry_backoff_ms:
            raise ValueError("retry_backoff_ms must not exceed max_retry_backoff_ms")
