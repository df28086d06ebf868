"""The library loads runs with only its own few dependencies."""

import re
import subprocess
import sys

import pytest

import polytoken
from tests.support.commands import REPOSITORY

PROGRAM = """
import sys
for name in ("lightning", "torchvision", "torchmetrics", "timm", "jsonargparse", "rich", "matplotlib"):
    sys.modules[name] = None  # importing it raises ImportError
import polytoken.pipeline, polytoken.handover, polytoken.parallelize
"""


METRICS = """
import sys
sys.modules["torchmetrics"] = None
from polytoken.errors import MissingPackageError
try:
    import polytoken.metrics
except MissingPackageError as error:
    print(error)
"""


def test_every_public_name_is_found_and_listed() -> None:
    assert all(getattr(polytoken, name) is not None for name in polytoken.__all__)
    assert set(polytoken.__all__) <= set(dir(polytoken))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        polytoken.nothing  # noqa: B018


def test_the_pipeline_needs_no_package_of_the_suite() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]


def test_metrics_without_the_suite_are_one_sentence() -> None:
    done = subprocess.run([sys.executable, "-c", METRICS], cwd=REPOSITORY, capture_output=True, text=True)
    assert re.fullmatch(
        r"polytoken\.metrics needs a package that is not installed \(.*torchmetrics.*\): install the extra `suite`.*\n",
        done.stdout,
    ), done.stderr[-800:]
