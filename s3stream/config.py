"""Settings of the storage engine: values only, validated whole, so that a node refuses a bad configuration at start.

Always true:
- Sizes are in bytes and times in milliseconds, and say so in their names.
- What is bounded has a name, a default and a reason here. The parts of the memory bound add up to no more than it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "CLOCK_SLACK_MS",
    "CollectionSettings",
    "CompactionSettings",
    "InvalidSettings",
    "ObjectStoreSettings",
    "ReadSettings",
    "StorageSettings",
]

KIB = 1 << 10
MIB = 1 << 20

CLOCK_SLACK_MS = 300_000
"""How far a node's clock, which says when an object was un-referenced, may be behind the store's, by which the window of a
restore is measured. Machines in order differ by milliseconds."""


class InvalidSettings(ValueError):
    """The settings contradict each other or are out of range; the message lists every problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStoreSettings:
    """How patiently the object store is spoken to."""

    request_timeout_ms: int = 30_000
    """One attempt, from its start to the last byte of its answer; whatever moves of a body begins it anew."""
    deadline_ms: int = 120_000
    """All attempts of one call; then it is `Unavailable` and the caller decides."""
    retry_first_delay_ms: int = 100
    retry_max_delay_ms: int = 5_000
    """Back-off doubles from the first to the largest delay, with jitter of its own size."""
    max_connections: int = 32
    """Requests in flight; bounds sockets, and buffers at up to one part each."""
    multipart_part_size_bytes: int = 16 * MIB
    """S3 wants 5 MiB at least; parts of 8 to 16 MiB cost the least CPU."""
    local_threads: int = 4
    """Threads for blocking calls of the local directory store."""

    def problems(self) -> list[str]:
        """What is wrong with these settings."""
        found = _not_positive(self)
        if self.deadline_ms < self.request_timeout_ms:
            found.append("deadline_ms must be at least request_timeout_ms")
        if self.retry_max_delay_ms < self.retry_first_delay_ms:
            found.append("retry_max_delay_ms must be at least retry_first_delay_ms")
        if not 5 * MIB <= self.multipart_part_size_bytes <= 64 * MIB:
            found.append("multipart_part_size_bytes must be from 5 MiB (S3's least) to 64 MiB")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings:
    """Reads of what only objects hold any more (catch-up reads)."""

    memory_bytes: int = 192 * MIB
    """Blocks being read, cached, or still held by responses that are being sent: all of them together."""
    index_cache_bytes: int = 32 * MIB
    """Indexes of objects, 64 bytes a block."""
    read_ahead_max_bytes: int = 8 * MIB
    """Most that is read ahead for one sequential reader."""
    read_ahead_initial_bytes: int = 1 * MIB
    """What the second read in sequence reads ahead; doubles from there."""
    max_get_size_bytes: int = 4 * MIB
    """Neighbouring blocks are fetched in one request of at most this size (larger only for one larger block)."""
    max_requests: int = 16
    """GETs of catch-up reads under way; fewer than connections, so that uploads and the metadata never wait for them."""
    tail_size_bytes: int = 64 * KIB
    """What is read of an object's end at first: holds the index of up to 1,023 blocks."""
    memory_wait_ms: int = 2_000
    """Longest wait for memory that others hold, such as responses to slow consumers; then the read is `NoMemory`, and can
    be tried again."""
    max_readers: int = 10_000
    """Sequential readers that are remembered for read-ahead; the least recent is forgotten."""

    def problems(self) -> list[str]:
        """What is wrong with these settings."""
        found = _not_positive(self)
        if self.read_ahead_initial_bytes > self.read_ahead_max_bytes:
            found.append("read_ahead_initial_bytes must be at most read_ahead_max_bytes")
        if self.memory_bytes < 4 * self.max_get_size_bytes:
            found.append("memory_bytes must be at least 4 x max_get_size_bytes, or readers wait for each other")
        if self.tail_size_bytes < 64:
            found.append("tail_size_bytes must be at least 64, the size of a footer")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionSettings:
    """Merging of small ranges, so that the number of objects a partition lies in stays bounded."""

    interval_ms: int = 10_000
    """Between looks at what could be merged."""
    fan_in: int = 10
    """Neighbouring ranges of similar size that are worth merging. Fewer: more rewriting; more: more objects."""
    max_fan_in: int = 256
    """Most that are merged at once (and at most `max_sources`), where that spares rewriting them twice, or makes ranges that cost few
    requests to copy. All are read at the same time, each through a buffer of its own."""
    max_waiting_ranges: int = 400_000
    """Ranges of all streams that wait to be merged for the first time, and again for the second: with many streams, fewer are merged at
    once. Each takes some 200 bytes of metadata in every process."""
    max_sources: int = 256
    """Objects read by one job."""
    max_source_bytes: int = 16_384 * MIB
    """Bytes read by one job (where even `fan_in` sources have more, those are taken nevertheless)."""
    object_size_bytes: int = 128 * MIB
    """An output with several streams is split at about this size; one stream with as much gets its own object."""
    stream_object_max_bytes: int = 256 * MIB
    """A range of this size is not merged any further."""
    memory_bytes: int = 32 * MIB
    """Read buffers and the part being written, of the one job that runs at a time. Where it has a process of its own, on top of the
    bound of the broker's."""
    rate_bytes_per_s: int = 64 * MIB
    """Bytes read per second, so that compaction does not take the network from producers and consumers."""

    def problems(self) -> list[str]:
        """What is wrong with these settings."""
        found = _not_positive(self)
        if self.fan_in < 2:
            found.append("fan_in must be at least 2")
        if self.max_sources < self.fan_in:
            found.append("max_sources must be at least fan_in")
        if self.max_fan_in < self.fan_in:
            found.append("max_fan_in must be at least fan_in")
        if self.stream_object_max_bytes < self.object_size_bytes:
            found.append("stream_object_max_bytes must be at least object_size_bytes")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionSettings:
    """Deletion of what nothing refers to."""

    interval_ms: int = 60_000
    grace_ms: int = 600_000
    """From the un-reference to the deletion, so that reads in flight finish."""
    restore_window_ms: int = 0
    """The metadata can be restored to any point of this past, so objects stay as long, and a little longer; 0: it cannot."""
    orphan_age_ms: int = 86_400_000
    """An object that was put but never committed is deleted at this age; longer than any upload is retried."""
    orphan_scan_interval_ms: int = 3_600_000
    """Between listings of all data objects."""
    batch_size: int = 500
    """Objects expired and deleted at a time; S3 deletes up to 1,000 in a request."""

    @property
    def kept_ms(self) -> int:
        """How long an object stays after its un-reference."""
        return max(self.grace_ms, self.restore_window_ms + CLOCK_SLACK_MS if self.restore_window_ms else 0)

    def problems(self) -> list[str]:
        """What is wrong with these settings."""
        found = _not_positive(self, but="restore_window_ms")
        if self.restore_window_ms < 0:
            found.append(f"restore_window_ms must not be negative, is {self.restore_window_ms}")
        if self.batch_size > 1000:
            found.append("batch_size must be at most 1000")
        if self.orphan_age_ms < self.grace_ms:
            found.append("orphan_age_ms must be at least grace_ms")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """Everything the storage engine of one node can be told."""

    wal_uri: str = "file:///var/lib/tidelog/wal?capacity=512MiB"
    object_store_uri: str = "file:///var/lib/tidelog/objects"
    memory_bytes: int = 1024 * MIB
    """Bound of the whole process; the parts below must fit in it, with a fifth left for everything else."""
    arena_bytes: int = 512 * MIB
    """WAL image, log cache and upload source in one; at most half of memory_bytes."""
    upload_interval_ms: int = 5_000
    """A cache block is uploaded at this age at the latest …"""
    upload_size_bytes: int = 64 * MIB
    """… or at this size. Fewer, larger objects against a longer recovery and a larger WAL."""
    upload_parallelism: int = 2
    """PUTs under way at a time; commits stay in order."""
    block_size_bytes: int = 512 * KIB
    """Target size of a data block: the unit of reading, caching and checking."""
    stream_object_min_bytes: int = 8 * MIB
    """A stream with as much data in one upload gets an object of its own."""
    object_store: ObjectStoreSettings = field(default_factory=ObjectStoreSettings)
    read: ReadSettings = field(default_factory=ReadSettings)
    compaction: CompactionSettings = field(default_factory=CompactionSettings)
    collection: CollectionSettings = field(default_factory=CollectionSettings)

    def __post_init__(self) -> None:
        problems = _not_positive(self)
        if self.arena_bytes > self.memory_bytes // 2:
            problems.append(
                f"arena_bytes ({self.arena_bytes}) must be at most half of memory_bytes ({self.memory_bytes})"
            )
        if self.arena_bytes % 4096:
            problems.append("arena_bytes must be a multiple of 4096, the alignment of WAL writes")
        parts = self.arena_bytes + self.read.memory_bytes + self.read.index_cache_bytes
        if parts > self.memory_bytes // 5 * 4:
            problems.append(
                f"arena, read and index cache take {parts} bytes; at most four fifths of memory_bytes"
                f" ({self.memory_bytes}) may be given away, the rest is for connections and the interpreter"
            )
        if self.upload_size_bytes > self.arena_bytes // 2:
            problems.append("upload_size_bytes must be at most half of arena_bytes, or appends wait for every upload")
        if self.block_size_bytes > self.read.max_get_size_bytes:
            problems.append("block_size_bytes must be at most read.max_get_size_bytes")
        if self.read.max_requests >= self.object_store.max_connections:
            problems.append(
                "read.max_requests must be less than object_store.max_connections, or uploads wait for readers"
            )
        for name in ("object_store", "read", "compaction", "collection"):
            problems += [f"{name}.{problem}" for problem in getattr(self, name).problems()]
        if problems:
            raise InvalidSettings("; ".join(problems))


def _not_positive(settings: object, *, but: str = "") -> list[str]:
    names: tuple[str, ...] = settings.__slots__  # type: ignore[attr-defined]
    values = ((name, getattr(settings, name)) for name in names if name != but)
    return [f"{name} must be positive, is {value}" for name, value in values if isinstance(value, int) and value <= 0]
