"""One page on all runs of a preset: what was run and where, curves, pictures, figures, and the papers' tables."""
