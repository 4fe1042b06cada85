"""Tests of what benchmarks rely on."""
