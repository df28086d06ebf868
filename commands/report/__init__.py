"""Report on all runs of a preset: settings, curves, pictures, metrics, and the papers' tables."""
