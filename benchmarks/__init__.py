"""Throughput, memory and the share of a bound measured in the same run."""
