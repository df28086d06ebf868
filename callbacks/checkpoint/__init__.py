"""Checkpoints and the state they carry."""
