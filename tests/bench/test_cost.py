"""What a bucket is billed for a steady load, in a few virtual minutes. `python -m bench cost` lives through hours."""

from __future__ import annotations

from bench.cost import Load, bill_for
from broker.config import BrokerSettings
from broker.shares import storage_settings
from s3stream.metered import Purpose
from wal.config import ObjectWalConfig

SETTINGS = storage_settings(BrokerSettings(memory_bytes=256 << 20))


def test_an_upload_costs_two_puts_and_a_get_and_each_byte_is_rewritten_once() -> None:
    load = Load(title="", partitions=5, bytes_per_s=2e6, payload_bytes=200_000, hours=0.25)
    bill = bill_for(load, SETTINGS)
    upload, metadata = bill.usage.total(Purpose.UPLOAD), bill.usage.total(Purpose.METADATA)
    uploads = load.hours * 3600 / 5
    assert uploads * 0.95 <= upload.puts <= uploads * 1.05
    assert upload.puts <= metadata.puts <= upload.puts * 1.2  # an entry each, and now and then ids, a merge, a snapshot
    assert metadata.gets <= metadata.puts * 1.1  # is it still this leader's?
    assert 1.0 <= bill.sent(Purpose.UPLOAD, Purpose.METADATA) <= 1.15
    assert bill.jobs > 0
    assert bill.second_uploads > 5
    assert 0.5 <= bill.sent(Purpose.COMPACTION) <= 1.05
    assert bill.usage.total(Purpose.COMPACTION).gets <= uploads / 3  # from memory; to read them would take two of each
    assert bill.most_ranges < uploads / 2


def test_a_wal_in_the_bucket_writes_each_byte_once_more() -> None:
    wal = ObjectWalConfig(store_uri="hollow://", batch_interval_ms=500, capacity_bytes=64 << 20)
    load = Load(title="", partitions=5, bytes_per_s=1e6, payload_bytes=10_000, hours=1 / 120, wal=wal)
    bill = bill_for(load, SETTINGS)
    used = bill.usage.total(Purpose.WAL)
    assert used.puts <= load.hours * 3600 * 2.2  # one an interval
    assert 0.98 <= used.sent_bytes / bill.appended_bytes <= 1.1  # the last interval is still on its way
