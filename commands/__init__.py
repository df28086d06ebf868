"""Programs that `make` runs besides cli.py: measurements, conversion, downloads and the report; plumbing of cli.py."""
