"""What is known of the cost of a lost WAL, in words: one text for logs and tools, so that they tell the same."""

from __future__ import annotations

from broker.inspect.rows import plural, size
from controller.losses import KnownLoss
from controller.records import Unuploaded
from controller.tables import NodeStatus

__all__ = ["loss_text"]


def loss_text(loss: KnownLoss) -> str:
    """What is known, and what is not. Numbers are exact; where they are not, it says so."""
    node_id, held = loss.node.node_id, loss.held
    if held is None:
        if not loss.node.lease_ms:
            return f"node {node_id} worked alone, so nobody else knows what it had acknowledged and not uploaded"
        if loss.status is NodeStatus.ALIVE:
            return f"node {node_id} is not taken for dead yet: what it reported last is told once another broker has led for some seconds"
        return (
            f"what node {node_id} had acknowledged and not uploaded is not known: no broker that led had a report of it"
        )
    before_s = loss.before_silence_ms / 1_000
    when = f"{before_s:.1f} s before it fell silent" if before_s >= 0 else "nobody knows how long before it fell silent"
    after = "what it acknowledged after that is not known"
    if not held.record_count:
        return f"node {node_id} last reported, {when}, that all it had acknowledged was in objects; {after}"
    is_left = loss.record_count == held.record_count
    return (
        f"node {node_id} last reported, {when}, {_records(held.record_count)} ({size(held.size_bytes)}) in "
        f"{plural(held.stream_count, 'partition')} that {'are' if is_left else 'were'} nowhere else{_since(loss, held)}; the oldest had waited for at least "
        f"{held.oldest_age_ms / 1_000:.1f} s; {after}"
    )


def _since(loss: KnownLoss, held: Unuploaded) -> str:
    """What became of them after the report."""
    left = loss.record_count
    if left is None:
        return f" (it named {len(held.streams)} of these; some may be in objects by now)"
    if left == held.record_count:
        return ""
    return f", of which {_records(held.record_count - left)} came into objects or were deleted afterwards, so that {left:,} are left"


def _records(count: int) -> str:
    return f"{count:,} record{'' if count == 1 else 's'}"
