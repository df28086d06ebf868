"""Settings of the whole suite."""

import gc
import multiprocessing

# of the server of each worker, from which tests fork processes; nothing of ours, which a test may have copied elsewhere
multiprocessing.set_forkserver_preload(["lightning.pytorch.cli"])


def pytest_collection_finish() -> None:
    """Leave the objects of imported libraries out of later garbage collections, which took a twentieth of the time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the libraries free at exit what they expect to free."""
    gc.unfreeze()
