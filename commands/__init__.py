"""Programs of the command line: evaluation, conversion, downloads, the report, and the plumbing of cli.py."""
