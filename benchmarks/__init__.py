"""Benchmarks: throughput and memory, each with a bound measured in the same run."""

from __future__ import annotations

import commands  # noqa: F401 - a Ctrl-C ends in one line
