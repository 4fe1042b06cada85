"""Real object stores for tests and for trying things out: built from source, run as processes on the loopback interface."""
