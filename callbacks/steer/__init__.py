"""Callbacks that watch or end a run."""
