"""Pytest plugin: a `tidelog` fixture that runs a broker inside the test process."""
