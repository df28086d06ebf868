"""Callbacks that measure a run and draw plots of it."""
