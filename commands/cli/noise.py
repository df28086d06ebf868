"""Messages of libraries that tell a user nothing about the run."""

from __future__ import annotations

import logging
import threading
import warnings

from polytoken.files import is_full

ADVERTS = ("💡 Tip", "TPU available", "HPU available")
WARNINGS = (
    ".*LeafSpec.*",  # Lightning's own use of a deprecated call
    ".*srun. command is available.*",  # outside of a job
    ".*instantiate_classes.*deprecated.*",  # Lightning's own use of jsonargparse
    ".*JsonargparseDeprecationWarning.*",
    ".*smaller than the logging interval.*",  # TextProgress counts steps, not epochs
    ".*args parameter is intended to run from within Python.*",  # commands that start cli.main
    ".*Total length of .* across ranks is zero.*",  # a prediction that was complete
    ".*predict returned None.*",  # our predictions are written, not returned
    ".*does not have many workers.*",  # TextProgress prints the wait for data
)


def quiet() -> None:
    """Drop these messages for the rest of the process; all others stay."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_no_advert)
    threading.excepthook = _report


def _is_no_advert(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(ADVERTS)


def _report(failed: threading.ExceptHookArgs) -> None:
    if not is_full(failed.exc_value):  # which TensorBoard's thread raises a second time, where it is caught
        threading.__excepthook__(failed)
