"""One partition: Kafka's log semantics over a stream.

Always true:
- Batches are stored as the client sent them; only base offset and leader epoch are rewritten, and, for LogAppendTime, the
  timestamp (KIP-32). The CRC is checked on the copy that stays, before anything is stamped. Only where `compression.type`
  names a codec are batches that come in another one compressed anew, as in Kafka; what was sent is checked before.
- The order of an append is: header checks, producer check against submitted state, room, copy, CRC, append, producer
  state. There is no await in between, so nothing can come between check and append (I2, I11).
- A batch is refused before any state changes, or it is appended whole.
- Until the producer state is rebuilt after an open, produce is answered by a retriable error; fetch is served. Where it cannot be
  rebuilt, since data that it takes is damaged, the partition is *offline* for producers: KAFKA_STORAGE_ERROR, which is retriable too.
"""

from __future__ import annotations

import struct
from typing import Protocol

from broker.errors import KafkaError
from broker.leader_epochs import EpochCheck, LeaderEpochs, check_leader_epoch
from broker.metrics import TopicTraffic
from broker.producer_state import DuplicateBatch, ProducerBudget, ProducerStateCorrupt, ProducerStates
from broker.record_walks import treat
from broker.replay import replay_batches
from broker.topic_config import TopicConfig
from protocol.errors import ErrorCode, InvalidRecords
from protocol.records import (
    ATTRIBUTES_POSITION,
    LENGTH_OVERHEAD_BYTES,
    TRANSACTIONAL,
    check_produced_header,
    parse_batch_header,
    stamp,
    stamp_log_append_time,
)
from s3stream.storage import OnDone, Storage
from s3stream.stream import Stream
from wal.checksum import combine_crc32c, crc32c

__all__ = [
    "NO_ROOM",
    "UNTREATED",
    "AlreadyAppended",
    "Partition",
    "PartitionWaiter",
    "decode_state",
    "encode_state",
]

NO_ROOM = -1
"""`Partition.append` appended nothing: wait for room in the log, then send the same batch again."""

UNTREATED = -2
"""`Partition.append` appended nothing: it takes a while to look into the batch, or to compress it anew. Have `RecordWalks` do
that, as the partition's `config.treatment` says, then send the same batch again together with what came out."""

COMBINE_CRC_FROM_BYTES = 128 << 10
"""From this size on it is cheaper to combine the CRC that was checked (5 us) than to hash twice more, for WAL and object."""

_STATE = struct.Struct(">HHII")  # magic, version, leader epochs, bytes of producer state
_STATE_MAGIC = 0x544C  # "TL"
_STATE_VERSION = 1
_EPOCH = struct.Struct(">iq")


class AlreadyAppended(Exception):
    """The batch repeats one that was appended before: answer with that one's offset, once it is durable."""

    def __init__(self, batch: DuplicateBatch) -> None:
        super().__init__(f"duplicate of the batch at offset {batch.base_offset}")
        self.batch = batch


class PartitionWaiter(Protocol):
    """Somebody who waits for more data, or for the end of the partition on this node."""

    def wake(self, partition: Partition) -> None:
        """The high watermark of a partition advanced, or its stream is withheld or closed."""


class Partition:
    """A partition whose stream is open on this node."""

    __slots__ = (
        "_duplicates",
        "_last_state_offset",
        "_producer_budget",
        "_storage",
        "_waiters",
        "bytes_in",
        "bytes_out",
        "config",
        "index",
        "leader_epochs",
        "leaving",
        "loaded",
        "offline",
        "producers",
        "stream",
        "topic_id",
        "topic_name",
        "traffic",
    )

    def __init__(
        self,
        *,
        storage: Storage,
        stream: Stream,
        topic_name: str,
        topic_id: bytes,
        index: int,
        config: TopicConfig,
        producer_budget: ProducerBudget,
        traffic: TopicTraffic,
    ) -> None:
        self._storage = storage
        self.stream = stream
        self.topic_name = topic_name
        self.topic_id = topic_id
        self.index = index
        self.config = config
        self._producer_budget = producer_budget
        self.traffic = traffic
        """Where handlers count what goes in and out."""
        self.bytes_in = 0
        """Of record batches that clients sent, since it was opened here."""
        self.bytes_out = 0
        """Of those that they got."""
        self.producers = ProducerStates()
        self.leader_epochs = LeaderEpochs()
        self.leaving = False
        """It is on its way to another node, and takes no more records."""
        self.loaded = False
        """Producer state and leader epochs are complete: produce may begin."""
        self.offline: Exception | None = None
        """Why they cannot be completed, where that is for damage and not for the time being."""
        self._last_state_offset = -1
        self._waiters: dict[PartitionWaiter, None] = {}
        self._duplicates: list[tuple[int, OnDone]] = []

    def __str__(self) -> str:
        return f"{self.topic_name}-{self.index}"

    # ---- open -------------------------------------------------------------------------------------------------

    @property
    def is_new(self) -> bool:
        """Nothing was ever written: there is no state to rebuild."""
        return self.stream.confirmed_offset == 0

    @property
    def is_loading(self) -> bool:
        """It will take records in a moment."""
        return not (self.loaded or self.leaving) and self.offline is None and self.stream.closed is None

    async def load(self, now_ms: int) -> None:
        """Rebuild producer state and leader epochs: the newest state block, then the headers of what follows it.

        Raises:
            ProducerStateCorrupt: the state block cannot be read.
            StorageError, ObjectStoreError: objects cannot be read now.
        """
        offset = self.stream.log_start_offset
        producers, epochs = ProducerStates(), LeaderEpochs()
        state = await self.stream.newest_state()
        if state is not None:
            offset, data = state
            producers, epochs = decode_state(data)
        if self.stream.gaps or (state is None and offset):
            producers.complete = False  # what was given up may have had a producer's first batches
        self.producers, self.leader_epochs = producers, epochs
        async for buffer, positions in self.stream.replay(offset):
            replay_batches(buffer, positions, producers, epochs, now_ms)
        self.start()

    def start(self) -> None:
        """Begin to accept produce requests: the state is complete."""
        self.producers.share(self._producer_budget)
        self._last_state_offset = -1
        self.loaded = True
        self.offline = None
        self.stream.state_source = self._state

    def leave(self) -> None:
        """Take no more records: another node is to go on from where this one ends."""
        self.loaded = False
        self.leaving = True

    def _state(self) -> bytes | None:
        """What travels with the data (a `Stream.state_source`): as of the log end offset."""
        # Written with every upload that holds data of this partition, changed or not: so a later open replays no more
        # than what was not yet uploaded.
        offset = self.stream.next_offset
        if offset == self._last_state_offset:
            return None
        self._last_state_offset = offset
        return encode_state(self.producers, self.leader_epochs)

    # ---- append -----------------------------------------------------------------------------------------------

    def append(
        self,
        records: bytes | memoryview,
        version: int,
        now_ms: int,
        on_done: OnDone | None,
        treated: bytes | memoryview | None = None,
    ) -> tuple[int, int]:
        """Append one batch: (base offset, log append time or -1), or (NO_ROOM or UNTREATED, -1).

        `on_done` is called when the batch is durable, or never will be acknowledged. `version` is that of the Produce
        request: it decides whether zstd is allowed (KIP-110). `treated` is what the topic's treatment made of these records.

        Raises:
            InvalidRecords, KafkaError, StorageError, InvalidProducerEpoch, OutOfOrderSequence: refused; nothing changed.
            AlreadyAppended: it repeats an earlier batch of an idempotent producer.
        """
        config = self.config
        header = check_produced_header(records, version, config.max_message_bytes)
        (
            _,
            batch_length,
            _,
            _,
            crc,
            attributes,
            _,
            base_timestamp,
            max_timestamp,
            producer_id,
            producer_epoch,
            sequence,
            count,
        ) = header
        stream = self.stream
        if not self.loaded or stream.closed is not None:
            raise self._refusal()
        if attributes & TRANSACTIONAL:
            raise KafkaError(ErrorCode.INVALID_TXN_STATE, "transactions are not supported by this broker version")
        if producer_id >= 0:
            duplicate = self.producers.check(producer_id, producer_epoch, sequence, count)
            if duplicate is not None:
                raise AlreadyAppended(duplicate)
        if config.log_append_time:
            max_timestamp = now_ms
        elif (
            max_timestamp - now_ms > config.timestamp_after_max_ms
            or now_ms - base_timestamp > config.timestamp_before_max_ms
        ):
            self._refuse_timestamp(base_timestamp, max_timestamp, now_ms)
        if config.treatment is not None:
            if treated is None:
                treated = treat(records, header, config.treatment)
                if treated is None:
                    return UNTREATED, -1
            records = treated
            if len(records) > config.max_message_bytes:  # again: it may have become larger
                raise InvalidRecords(
                    ErrorCode.MESSAGE_TOO_LARGE,
                    f"the batch has {len(records)} bytes in the topic's codec, the limit is {config.max_message_bytes}",
                )
            treated_header = parse_batch_header(records)
            batch_length, crc = treated_header.batch_length, treated_header.crc
        storage = self._storage
        view = storage.reserve(len(records))
        if view is None:
            return NO_ROOM, -1
        view[:] = records
        if crc32c(view[ATTRIBUTES_POSITION:]) != crc:
            storage.cancel()
            raise InvalidRecords(ErrorCode.CORRUPT_MESSAGE, f"the CRC of a batch for {self} does not match its bytes")
        base_offset = stream.next_offset
        leader_epoch = stream.leader_epoch
        stamp(view, batch_length, base_offset, leader_epoch)
        if config.log_append_time:
            stamp_log_append_time(view, now_ms)
            payload_crc = None
        elif len(view) < COMBINE_CRC_FROM_BYTES:
            payload_crc = None
        else:
            # The batch's own CRC is that of all but its first bytes, and was just checked.
            payload_crc = combine_crc32c(crc32c(view[:ATTRIBUTES_POSITION]), crc, len(view) - ATTRIBUTES_POSITION)
        storage.append(stream, count, max_timestamp, on_done, payload_crc)
        if self.leader_epochs.newest < leader_epoch:
            self.leader_epochs.begin(leader_epoch, base_offset)
        append_time = now_ms if config.log_append_time else -1
        if producer_id >= 0:
            self.producers.record(producer_id, producer_epoch, sequence, count, base_offset, append_time, now_ms)
        return base_offset, append_time

    def append_own(self, batch: bytes, record_count: int, timestamp_ms: int, on_done: OnDone) -> int:
        """Append a batch that this broker made itself, of records without a producer; returns its base offset, or NO_ROOM.

        Raises:
            KafkaError, StorageError: refused; nothing changed.
        """
        stream = self.stream
        if not self.loaded or stream.closed is not None:
            raise self._refusal()
        view = self._storage.reserve(len(batch))
        if view is None:
            return NO_ROOM
        view[:] = batch
        base_offset = stream.next_offset
        stamp(view, len(batch) - LENGTH_OVERHEAD_BYTES, base_offset, stream.leader_epoch)
        self._storage.append(stream, record_count, timestamp_ms, on_done)
        if self.leader_epochs.newest < stream.leader_epoch:
            self.leader_epochs.begin(stream.leader_epoch, base_offset)
        return base_offset

    def _refuse_timestamp(self, base_timestamp: int, max_timestamp: int, now_ms: int) -> None:
        if base_timestamp < 0 and max_timestamp - now_ms <= self.config.timestamp_after_max_ms:
            return  # records without a timestamp are always taken
        raise KafkaError(
            ErrorCode.INVALID_TIMESTAMP,
            f"timestamps {base_timestamp}..{max_timestamp} are too far from the broker's {now_ms} "
            "(message.timestamp.before.max.ms, message.timestamp.after.max.ms)",
        )

    def is_durable(self, batch: DuplicateBatch) -> bool:
        """Whether an earlier batch was acknowledged, or may be now."""
        return batch.base_offset + batch.record_count <= self.stream.confirmed_offset

    def when_durable(self, batch: DuplicateBatch, on_done: OnDone) -> None:
        """Call back once an earlier batch, which is not durable yet, is, or never will be acknowledged."""
        self._duplicates.append((batch.base_offset + batch.record_count, on_done))
        self.stream.listener = self._advanced

    # ---- wake-ups -----------------------------------------------------------------------------------------------

    def watch(self, waiter: PartitionWaiter) -> None:
        """Wake `waiter` at each advance, until `unwatch`."""
        self._waiters[waiter] = None
        self.stream.listener = self._advanced

    def unwatch(self, waiter: PartitionWaiter) -> None:
        """Undo `watch`; does nothing where it is undone already."""
        self._waiters.pop(waiter, None)
        if not self._waiters and not self._duplicates:
            self.stream.listener = None  # appends that nobody waits for cost nothing more

    def _advanced(self) -> None:
        closed = self.stream.closed
        if self._duplicates:
            confirmed_offset = self.stream.confirmed_offset
            waiting, self._duplicates = self._duplicates, []
            for end_offset, on_done in waiting:
                if end_offset <= confirmed_offset:
                    on_done(None)
                elif closed is not None:
                    on_done(closed)
                else:
                    self._duplicates.append((end_offset, on_done))
        for waiter in list(self._waiters):
            waiter.wake(self)
        if not self._waiters and not self._duplicates:
            self.stream.listener = None

    def _refusal(self) -> Exception:
        """Why nothing is appended now."""
        if self.stream.closed is not None:
            return self.stream.closed
        if self.offline is not None:
            return KafkaError(ErrorCode.KAFKA_STORAGE_ERROR, f"{self} is offline for producers: {self.offline}")
        what = "on its way to another node" if self.leaving else "loading"
        return KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, f"{self} is {what}")

    async def trim(self, log_start_offset: int) -> None:
        """Raise the log start; see `Stream.trim`.

        Of a partition that is offline too: that is how an operator gives up what is damaged.

        Raises:
            KafkaError: the partition is loading: what follows its newest state is needed still.
            OffsetOutOfRange, StorageError, ObjectStoreError: see `Stream.trim`.
        """
        if not self.loaded and self.offline is None:
            raise self._refusal()
        await self.stream.trim(log_start_offset)
        self.leader_epochs.trim(self.stream.log_start_offset)

    # ---- what handlers ask ------------------------------------------------------------------------------------

    @property
    def high_watermark(self) -> int:
        """First offset that consumers do not see yet."""
        return self.stream.confirmed_offset

    @property
    def last_stable_offset(self) -> int:
        """First offset that read_committed consumers do not see yet; there are no transactions so far."""
        return self.stream.confirmed_offset

    @property
    def log_start_offset(self) -> int:
        """First offset that can be read."""
        return self.stream.log_start_offset

    @property
    def leader_epoch(self) -> int:
        """Epoch of this leadership."""
        return self.stream.leader_epoch

    def check_epoch(self, current_leader_epoch: int) -> ErrorCode:
        """Compare a client's idea of the leader epoch with ours (KIP-320)."""
        verdict = check_leader_epoch(current_leader_epoch, self.stream.leader_epoch)
        if verdict is EpochCheck.CURRENT:
            return ErrorCode.NONE
        return ErrorCode.FENCED_LEADER_EPOCH if verdict is EpochCheck.FENCED else ErrorCode.UNKNOWN_LEADER_EPOCH


def encode_state(producers: ProducerStates, leader_epochs: LeaderEpochs) -> bytes:
    """A state block."""
    packed = producers.snapshot()
    epochs = leader_epochs.entries()
    data = bytearray(_STATE.pack(_STATE_MAGIC, _STATE_VERSION, len(epochs), len(packed)))
    for leader_epoch, start_offset in epochs:
        data += _EPOCH.pack(leader_epoch, start_offset)
    data += packed
    return bytes(data)


def decode_state(data: bytes) -> tuple[ProducerStates, LeaderEpochs]:
    """What a state block of a partition holds.

    Raises:
        ProducerStateCorrupt: it is damaged, or of a newer version.
    """
    try:
        magic, version, epoch_count, producers_size = _STATE.unpack_from(data, 0)
        if magic != _STATE_MAGIC or version != _STATE_VERSION:
            raise ProducerStateCorrupt(
                f"partition state has magic {magic:#06x} and version {version}; this broker reads "
                f"{_STATE_MAGIC:#06x} version {_STATE_VERSION}: upgrade it"
            )
        epochs = LeaderEpochs()
        position = _STATE.size
        for _ in range(epoch_count):
            epochs.begin(*_EPOCH.unpack_from(data, position))
            position += _EPOCH.size
    except struct.error as error:
        raise ProducerStateCorrupt(f"partition state is cut short: {error}") from error
    if position + producers_size != len(data):
        raise ProducerStateCorrupt(f"partition state has {len(data)} bytes, not {position + producers_size}")
    return ProducerStates.restore(data[position:]), epochs
