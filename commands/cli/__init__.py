"""Plumbing of cli.py: run directories, resuming, messages."""
