"""The papers' tables as files, their runner and their tables: `python -m experiments run ssq/table3`."""
