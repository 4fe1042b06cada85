"""What can go wrong with metadata, few and prescriptive. `broker/errors.py` maps them to Kafka error codes.

Errors that the storage engine handles itself (`NodeFenced`, `MetadataUnavailable`, `ObjectExpired`, `SourcesChanged`)
are in `s3stream/errors.py`.
"""

from __future__ import annotations

__all__ = [
    "ConfigsChanged",
    "ControllerError",
    "InvalidPartitionCount",
    "InvariantViolated",
    "MetadataCorrupt",
    "NoNodes",
    "NodeIdTaken",
    "NodeRefused",
    "PastUnreachable",
    "RestoreRefused",
    "StreamNotDrained",
    "TooManyPartitions",
    "TopicExists",
    "UnknownNode",
    "UnknownTopic",
    "UnsupportedMetadata",
    "WrongCluster",
]


_RESTORE = "restore it from the bucket's versions or a backup, with all brokers stopped; `tidelog verify` tells all that is wrong"


class ControllerError(Exception):
    """What every error of the controller is."""


class TopicExists(ControllerError):
    """A topic of this name exists; delete it first or take another name."""


class UnknownTopic(ControllerError):
    """No topic of this name or id (any more)."""


class UnknownNode(ControllerError):
    """A node is not registered, or is drained, that was to get partitions; start it first, or name another."""


class TooManyPartitions(ControllerError):
    """The cluster would hold more partitions than `max_partitions`; raise it or delete topics."""


class InvalidPartitionCount(ControllerError):
    """A topic has as many partitions already, or more; partitions can only be added."""


class ConfigsChanged(ControllerError):
    """Configurations are not (any more) what a change was computed from: compute it again."""


class NoNodes(ControllerError):
    """No node is registered that could lead a partition; start one."""


class NodeRefused(ControllerError):
    """The node's WAL is not the one that its streams are open on; the message says what to do."""


class NodeIdTaken(NodeRefused):
    """The id was only given to the node, which was silent for so long since that another has it by now: it may start again, and gets one of its own."""


class RestoreRefused(ControllerError):
    """Topics cannot be taken back to what they were; the message says what stands in the way, and what to do."""


class PastUnreachable(ControllerError):
    """The bucket does not hold (any more) what leads to a point of the past; the message says how far back it goes."""


class StreamNotDrained(ControllerError):
    """A stream was to be closed past what objects hold of it; upload its tail first."""


class WrongCluster(ControllerError):
    """The bucket belongs to another cluster than the one configured."""


class UnsupportedMetadata(ControllerError):
    """The metadata was written by a newer version; upgrade this node."""


class MetadataCorrupt(ControllerError):
    """An object of the metadata log does not match its CRC, index or layout, or is missing. The message names its key, and says what to do."""

    def __init__(self, problem: str, *, is_advised: bool = False) -> None:
        """`is_advised`: the problem says already what to do; else the object is to be restored."""
        super().__init__(problem if is_advised else f"{problem}: {_RESTORE}")
        self.problem = problem


class InvariantViolated(ControllerError):
    """A change would have broken a named invariant, and was not written: a defect of ours, please report it."""
