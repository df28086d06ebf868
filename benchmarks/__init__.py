"""Benchmarks: throughput and memory, each with a bound measured in the same run."""
