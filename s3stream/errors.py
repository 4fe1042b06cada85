"""What can go wrong in the storage engine, few and prescriptive. `broker/errors.py` maps them to Kafka error codes."""

from __future__ import annotations

__all__ = [
    "ForeignObject",
    "MetadataUnavailable",
    "NoMemory",
    "NodeFenced",
    "ObjectCorrupt",
    "ObjectExpired",
    "OffsetOutOfRange",
    "SourcesChanged",
    "StorageError",
    "StorageFenced",
    "StreamClosed",
    "StreamFenced",
    "TakenForDead",
    "UnsupportedObjectFormat",
]


class StorageError(Exception):
    """What every error of the engine is."""


class OffsetOutOfRange(StorageError):
    """The offset lies below the log start offset or above the log end offset."""


class StreamClosed(StorageError):
    """The stream is not (or no longer) open on this node; look up its owner."""


class StreamFenced(StreamClosed):
    """A newer leader epoch took the stream over; what was not acknowledged here must be sent to the new leader."""


class StorageFenced(StorageError):
    """A WAL write failed or was fenced: this process acknowledges nothing more; restart it to recover."""


class NodeFenced(StorageError):
    """A newer registration of this node id exists: stop serving, register again."""


class TakenForDead(NodeFenced):
    """It is this very registration that others took for dead, since it stood still; nobody else runs as this node: start again."""


class MetadataUnavailable(StorageError):
    """The metadata log cannot be reached; the outcome of a command is open until it can. Try again."""


class NoMemory(StorageError):
    """Memory for reads of objects is held by others, such as responses that are being sent. Try again."""


class ObjectExpired(StorageError):
    """The object id was expired by the collector before it was committed: upload again under a new id."""


class SourcesChanged(StorageError):
    """A compaction's source was un-referenced or changed meanwhile: discard the work."""


class ObjectCorrupt(StorageError):
    """An object's bytes do not match their CRC or layout. Names object, stream and offsets."""


class ForeignObject(ObjectCorrupt):
    """Under an object's key lies another object, which is whole."""


class UnsupportedObjectFormat(StorageError):
    """The object was written by a newer version: upgrade this node."""
