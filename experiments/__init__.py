"""Tables of the papers as YAML files, and the programs that run and print them."""

from __future__ import annotations

import commands  # noqa: F401 - a Ctrl-C ends in one line
