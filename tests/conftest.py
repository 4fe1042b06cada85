"""What all tests share: S3 servers, and the rule that a test's event loop is asyncio's own, unless it says otherwise."""

from __future__ import annotations

from tests.stores.fixtures import s3_server, s3_server_named

__all__ = ["s3_server", "s3_server_named"]
