"""Settings of the whole suite."""

import gc


def pytest_collection_finish() -> None:
    """Take a million objects of imported libraries out of every later collection, a twentieth of the suite's time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the libraries free at exit what they expect to free."""
    gc.unfreeze()
