"""A bucket's own rules: which of them meet a cluster's objects, and what is said of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from s3stream.bucket_rules import (
    BucketRules,
    LifecycleRule,
    Weight,
    findings,
    lifecycle_rule,
    lock_retention,
    tell_rules,
)
from s3stream.config import ObjectStoreSettings
from s3stream.paths import Paths
from tests.s3stream.moto import QUICK, open_bucket
from tests.s3stream.scripted import Request, answer, error, listening
from tests.stores.s3_server import S3Server

EXPIRES = {"Days": 30}


def rule(**fields: Any) -> dict[str, Any]:
    return {"ID": "cleanup", "Status": "Enabled", **fields}


@pytest.mark.parametrize(
    ("given", "prefix", "meets"),
    [
        (rule(Expiration=EXPIRES), "tide", True),  # of the whole bucket
        (rule(Expiration=EXPIRES, Filter={}), "", True),
        (rule(Expiration=EXPIRES, Filter={"Prefix": ""}), "tide", True),
        (rule(Expiration=EXPIRES, Filter={"Prefix": "tide/"}), "tide", True),
        (rule(Expiration=EXPIRES, Filter={"Prefix": "ti"}), "tide", True),
        (rule(Expiration=EXPIRES, Filter={"Prefix": "tide/data/"}), "tide", True),  # a part of ours
        (rule(Expiration=EXPIRES, Filter={"Prefix": "tide/data/"}), "", True),
        (rule(Expiration=EXPIRES, Filter={"Prefix": "tides/"}), "tide", False),
        (rule(Expiration=EXPIRES, Filter={"Prefix": "tide"}), "tides", True),
        (rule(Expiration=EXPIRES, Filter={"Prefix": "logs/"}), "tide", False),
        (rule(Expiration=EXPIRES, Filter={"Prefix": "tide/other/"}), "tide/ours", False),
        (rule(Expiration=EXPIRES, Prefix="tide/"), "tide", True),  # the old form
        (rule(Expiration=EXPIRES, Prefix="logs/"), "tide", False),
        (rule(Expiration=EXPIRES, Filter={"Tag": {"Key": "a", "Value": "b"}}), "tide", False),
        (rule(Expiration=EXPIRES, Filter={"And": {"Prefix": "tide/", "Tags": [{"Key": "a", "Value": "b"}]}}), "tide", False),
        (rule(Expiration=EXPIRES, Filter={"And": {"Prefix": "tide/", "ObjectSizeGreaterThan": 1}}), "tide", True),
        (rule(Expiration=EXPIRES, Filter={"ObjectSizeLessThan": 9}), "tide", True),
        ({**rule(Expiration=EXPIRES), "Status": "Disabled"}, "tide", False),
        (rule(Expiration={"Date": datetime(2030, 1, 1, tzinfo=UTC)}), "tide", True),
        (rule(Expiration={"ExpiredObjectDeleteMarker": True}), "tide", False),
        (rule(AbortIncompleteMultipartUpload={"DaysAfterInitiation": 1}), "tide", False),
        (rule(NoncurrentVersionExpiration={"NoncurrentDays": 1}), "tide", False),
        (rule(Transitions=[{"Days": 1, "StorageClass": "GLACIER"}]), "tide", True),
        (rule(Transitions=[{"Days": 1, "StorageClass": "STANDARD_IA"}]), "tide", False),
    ],
)  # fmt: skip
def test_whether_a_rule_costs_data(given: Mapping[str, Any], prefix: str, meets: bool) -> None:
    found = findings(BucketRules(lifecycle=(lifecycle_rule(given),)), prefix)
    assert any(finding.weight is Weight.LOSES for finding in found) is meets


def test_the_rule_is_named_with_what_to_do() -> None:
    (found,) = findings(
        BucketRules(lifecycle=(lifecycle_rule(rule(Expiration=EXPIRES, Filter={"Prefix": "tide/"})),)), "tide"
    )
    assert found.text == (
        "lifecycle rule 'cleanup' deletes objects below 'tide/' after 30 days: acknowledged records and metadata of this "
        "cluster will be lost. Remove the rule, or limit it to another prefix; topics have retention.ms"
    )


@pytest.mark.parametrize(
    ("versioning", "rules", "weight"),
    [
        ("", (), None),
        ("Enabled", (), Weight.COSTS),
        ("Enabled", (LifecycleRule(name="a", noncurrent_days=3),), None),
        ("Enabled", (LifecycleRule(name="a", noncurrent_days=3, prefix="tide/"),), None),
        ("Enabled", (LifecycleRule(name="a", noncurrent_days=3, prefix="tide/data/"),), Weight.COSTS),  # not metadata
        ("Enabled", (LifecycleRule(name="a", noncurrent_days=3, prefix="logs/"),), Weight.COSTS),
        ("Suspended", (), Weight.NOTE),
    ],
)
def test_versions_cost(versioning: str, rules: tuple[LifecycleRule, ...], weight: Weight | None) -> None:
    found = findings(BucketRules(versioning=versioning, lifecycle=rules), "tide")
    assert [finding.weight for finding in found] == ([] if weight is None else [weight])


def test_the_worst_comes_first() -> None:
    rules = BucketRules(
        versioning="Enabled",
        lock="for 3 days",
        lifecycle=(LifecycleRule(name="a", expiration="after 3 days"),),
        unknown=("lock",),
    )
    assert [finding.weight for finding in findings(rules, "")] == [
        Weight.LOSES,
        Weight.COSTS,
        Weight.COSTS,
        Weight.NOTE,
    ]


def test_retention_of_object_lock() -> None:
    assert lock_retention({}) == ""
    assert lock_retention({"ObjectLockEnabled": "Enabled"}) == ""
    assert lock_retention({"Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 7}}}) == "for 7 days"
    assert lock_retention({"Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Years": 1}}}) == "for 1 years"


async def test_they_are_read_from_a_bucket(s3_server: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    store = s3_server.open(s3_server.new_bucket())
    fresh = await store.read_rules()
    assert (fresh.versioning, fresh.lifecycle, fresh.lock) == ("", (), "")
    client = await store._open()
    await client.put_bucket_versioning(Bucket=store._bucket, VersioningConfiguration={"Status": "Enabled"})
    await client.put_bucket_lifecycle_configuration(
        Bucket=store._bucket,
        LifecycleConfiguration={"Rules": [rule(Expiration=EXPIRES, Filter={"Prefix": "tide/"})]},
    )
    found = await store.read_rules()
    assert found.versioning == "Enabled"
    assert found.lifecycle == (LifecycleRule(name="cleanup", prefix="tide/", expiration="after 30 days"),)
    await tell_rules(store, Paths("tide"))
    said = [(record.levelno, record.getMessage()) for record in caplog.records if record.name.startswith("tidelog")]
    assert said[0][0] == logging.ERROR
    assert said[0][1].startswith(
        "about the bucket: lifecycle rule 'cleanup' deletes objects below 'tide/' after 30 days"
    )
    assert said[1][0] == logging.WARNING
    assert said[1][1].startswith("about the bucket: the bucket keeps versions")
    await store.close()


async def test_not_allowed_to_read_them_is_said_at_info(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(request: Request) -> bytes | None:
        if "lifecycle" in request.target:
            return error("501 Not Implemented", "NotImplemented")(request)
        if "versioning" in request.target:
            return answer("200 OK", b"<VersioningConfiguration/>")
        return error("403 Forbidden", "AccessDenied")(request)

    caplog.set_level(logging.INFO)
    async with listening(refuse) as server:
        store = open_bucket("bucket", QUICK, url=server.url)
        await tell_rules(store, Paths())
        said = [(record.levelno, record.getMessage()) for record in caplog.records if record.name.startswith("tidelog")]
        assert [level for level, _ in said] == [logging.INFO, logging.INFO]
        assert "read lifecycle rules: 501 NotImplemented" in said[0][1]
        assert "read object lock: 403 AccessDenied" in said[1][1]
        await store.close()


async def test_a_store_that_does_not_answer_is_no_reason_to_fail(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = open_bucket(
        "bucket", ObjectStoreSettings(request_timeout_ms=100, deadline_ms=200), url="http://127.0.0.1:9"
    )
    await tell_rules(store, Paths())
    assert "the bucket's rules were not read" in caplog.text
    await store.close()
