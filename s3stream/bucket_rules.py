"""What a bucket's own rules do to a cluster in it: lifecycle, versions, object lock. Pure, but for `tell_rules`, which reads and logs.

A bucket may have rules of its own, written by somebody who did not know of the cluster. One that expires objects under a
cluster's prefix deletes acknowledged records, months later, without a trace; one that moves them to an archive makes them
unreadable. So they are looked at when a node starts, and told, loudly where data is at stake. The node starts all the same: the rule
may have been there for long, and to refuse service does not undo it.

Our objects have no tags, so a rule that asks for one does not concern them; all their sizes are possible, so a rule that asks for a size does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Protocol, runtime_checkable

from s3stream.objectstore import ObjectStoreError
from s3stream.paths import Paths

__all__ = [
    "BucketRules",
    "Finding",
    "LifecycleRule",
    "RuledBucket",
    "Weight",
    "findings",
    "lifecycle_rule",
    "lock_retention",
    "tell_rules",
]

_log: Final = logging.getLogger("tidelog.object_store")

_UNREADABLE = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes that answer a GET with 403 until the object is restored."""
_TIERED = "; leave its archive access tiers off: what comes there cannot be read"


class Weight(IntEnum):
    """How a finding is told: a level of the log."""

    NOTE = logging.INFO
    COSTS = logging.WARNING
    LOSES = logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something about a bucket that its operator should know."""

    weight: Weight
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleRule:
    """A rule, as far as it matters here."""

    name: str
    prefix: str = ""
    is_enabled: bool = True
    has_tags: bool = False
    expiration: str = ""
    """When current objects are deleted, in words; empty: never."""
    transitions: tuple[tuple[str, str], ...] = ()
    """Storage class and when, in words."""
    noncurrent_days: int | None = None
    """When former versions are deleted."""

    def concerns(self, root: str) -> bool:
        """Whether it can meet keys that begin with `root` (a prefix with its slash, or empty)."""
        overlaps = self.prefix.startswith(root) or root.startswith(self.prefix)
        return self.is_enabled and not self.has_tags and overlaps

    def covers(self, root: str) -> bool:
        """Whether it meets all of them."""
        return self.concerns(root) and root.startswith(self.prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketRules:
    """What a bucket says of itself."""

    versioning: str = ""
    """Enabled, Suspended, or empty: never was."""
    lifecycle: tuple[LifecycleRule, ...] = ()
    lock: str = ""
    """For how long each object is kept from deletion, in words; empty: not at all."""
    unknown: tuple[str, ...] = ()
    """What could not be read, and why."""


@runtime_checkable
class RuledBucket(Protocol):
    """A store that has such rules."""

    @property
    def uri(self) -> str:
        """What the operator configured."""

    async def read_rules(self) -> BucketRules:
        """Ask for all of them; what is not allowed is `unknown`. Raises ObjectStoreError."""


def lifecycle_rule(rule: Mapping[str, Any]) -> LifecycleRule:
    """From S3's own form, old (`Prefix`) or new (`Filter`)."""
    condition: Mapping[str, Any] = rule.get("Filter") or {}
    both: Mapping[str, Any] = condition.get("And") or {}
    expiration: Mapping[str, Any] = rule.get("Expiration") or {}
    noncurrent: Mapping[str, Any] = rule.get("NoncurrentVersionExpiration") or {}
    return LifecycleRule(
        name=str(rule.get("ID") or "without a name"),
        prefix=str(condition.get("Prefix") or both.get("Prefix") or rule.get("Prefix") or ""),
        is_enabled=rule.get("Status") == "Enabled",
        has_tags=bool(condition.get("Tag") or both.get("Tags")),
        # ExpiredObjectDeleteMarker, the third kind, cleans up behind deletions.
        expiration=_when(expiration) if "Days" in expiration or "Date" in expiration else "",
        transitions=tuple((str(each.get("StorageClass")), _when(each)) for each in rule.get("Transitions") or ()),
        noncurrent_days=noncurrent.get("NoncurrentDays"),
    )


def lock_retention(configuration: Mapping[str, Any]) -> str:
    """For how long every new object is kept, from S3's own form; empty where each is locked by itself or none is."""
    retention: Mapping[str, Any] = configuration.get("Rule", {}).get("DefaultRetention", {})
    if "Days" in retention:
        return f"for {retention['Days']} days"
    return f"for {retention['Years']} years" if "Years" in retention else ""


def _when(action: Mapping[str, Any]) -> str:
    return f"after {action['Days']} days" if "Days" in action else f"on {action.get('Date')}"


def findings(rules: BucketRules, prefix: str) -> Sequence[Finding]:
    """What a cluster below a prefix should know, the worst first."""
    root = f"{prefix}/" if prefix else ""
    found: list[Finding] = []
    for rule in rules.lifecycle:
        if not rule.concerns(root):
            continue
        where = f"below {rule.prefix!r}" if rule.prefix else "of the whole bucket"
        if rule.expiration:
            found.append(
                Finding(
                    weight=Weight.LOSES,
                    text=f"lifecycle rule {rule.name!r} deletes objects {where} {rule.expiration}: acknowledged records and metadata of "
                    "this cluster will be lost. Remove the rule, or limit it to another prefix; topics have retention.ms",
                )
            )
        for storage_class, when in rule.transitions:
            if storage_class in _UNREADABLE:
                found.append(
                    Finding(
                        weight=Weight.LOSES,
                        text=f"lifecycle rule {rule.name!r} moves objects {where} to {storage_class} {when}, where they cannot be read. "
                        "Remove the rule, limit it to another prefix, or take a class that is read at once, such as GLACIER_IR",
                    )
                )
            else:
                found.append(
                    Finding(
                        weight=Weight.NOTE,
                        text=f"lifecycle rule {rule.name!r} moves objects {where} to {storage_class} {when}: compaction and "
                        "catch-up reads may cost more there than is saved"
                        + (_TIERED if storage_class == "INTELLIGENT_TIERING" else ""),
                    )
                )
    if rules.versioning == "Enabled" and not any(
        rule.noncurrent_days is not None and rule.covers(root) for rule in rules.lifecycle
    ):
        found.append(
            Finding(
                weight=Weight.COSTS,
                text="the bucket keeps versions: what is deleted (by compaction, about all that is written) goes on costing for ever. Add a "
                f"lifecycle rule for {root or 'the whole bucket'!r} with NoncurrentVersionExpiration, of a few days, and "
                "ExpiredObjectDeleteMarker",
            )
        )
    if rules.versioning == "Suspended":
        found.append(
            Finding(weight=Weight.NOTE, text="the bucket's versioning is suspended: versions of before stay, and cost")
        )
    if rules.lock:
        found.append(
            Finding(
                weight=Weight.COSTS,
                text=f"object lock keeps every version {rules.lock}: what is deleted goes on costing until then. Leave "
                "checksums=false out of the URI: such buckets refuse uploads without",
            )
        )
    found += [Finding(weight=Weight.NOTE, text=f"the bucket's rules were not read: {what}") for what in rules.unknown]
    return sorted(found, key=lambda finding: -finding.weight)


async def tell_rules(bucket: RuledBucket, paths: Paths) -> None:
    """Read a bucket's rules once, and log what there is to know."""
    try:
        rules = await bucket.read_rules()
    except ObjectStoreError as error:
        rules = BucketRules(unknown=(str(error),))
    for finding in findings(rules, paths.prefix):
        _log.log(finding.weight, "about the bucket: %(finding)s", {"finding": finding.text, "object_store": bucket.uri})
