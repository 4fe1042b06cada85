"""Puts one broker together, a module for each step. The only place that constructs implementations of ports."""
