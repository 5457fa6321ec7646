"""Benchmarks that run beside their baselines in one run: ratios count, absolute figures belong to the machine."""
