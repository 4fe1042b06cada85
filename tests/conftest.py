"""What all tests share: nothing but the rule that a test's event loop is asyncio's own, unless it says otherwise."""
