"""A day's bill by the planner alone: a few hours of it here."""

from __future__ import annotations

from bench.day import Load, day_of
from broker.config import BrokerSettings
from broker.shares import storage_settings

SETTINGS = storage_settings(BrokerSettings())


def test_what_fits_in_memory_is_merged_without_reading_it() -> None:
    day = day_of(Load(partitions=40, partition_bytes_per_s=10e3, looked_at=40, hours=0.5), SETTINGS)
    uploads = 0.5 * 3600 / 5
    assert uploads <= day.gets <= uploads + 5  # those of the metadata log
    assert 1.4 <= day.sent_bytes / day.produced_bytes <= 2.0


def test_what_does_not_is_read_in_two_requests_for_each_upload() -> None:
    day = day_of(Load(partitions=100, partition_bytes_per_s=10e3, looked_at=100, hours=0.5), SETTINGS)
    uploads = 0.5 * 3600 / 5
    assert uploads + 2 * 200 <= day.gets <= uploads + 2 * 256 + 5
    assert 1.4 <= day.sent_bytes / day.produced_bytes <= 2.0


def test_of_many_partitions_some_stand_for_all() -> None:
    few = day_of(Load(partitions=1000, partition_bytes_per_s=10e3, looked_at=10, hours=0.5), SETTINGS)
    more = day_of(Load(partitions=1000, partition_bytes_per_s=10e3, looked_at=20, hours=0.5), SETTINGS)
    assert abs(few.per_gb(few.puts) / more.per_gb(more.puts) - 1) < 0.1
    assert abs(few.per_gb(few.gets) / more.per_gb(more.gets) - 1) < 0.1
