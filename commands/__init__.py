"""Programs of the suite. A Ctrl-C ends each of them, even during its imports, with one line and code 130."""

from __future__ import annotations

import sys
from types import TracebackType


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):  # Python then ends itself by SIGINT, which shells report as 130
        print("\nstopped: what was written before is whole, and the same command starts again", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report
