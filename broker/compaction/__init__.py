"""Compaction in a process of its own, beside the broker: `process` is the broker's side, `worker` what runs there."""
