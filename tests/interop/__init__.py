"""Real Kafka clients against a real broker process.

Every client is wrapped in one small adapter (`clients/`), so that each test is written once and runs with all of
them; what only one client can do is in `test_<client>.py`.
"""
