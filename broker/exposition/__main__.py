"""`python -m broker.exposition`: what docs/metrics.md holds."""

from __future__ import annotations

from broker.exposition.table import as_markdown

if __name__ == "__main__":
    print(as_markdown(), end="")
