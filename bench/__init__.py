"""Benchmarks: what the broker does beside what the machine can do. `make bench`, or `python -m bench --help`.

Nothing here is asserted in tests: machines differ, and shared ones from minute to minute. So each round measures
every load beside its baseline, the rounds are interleaved, and a line shows the median over the rounds with its range.
"""
