"""Two ranks log the metrics of one, even if one of them has no image of a subset."""

import json
from pathlib import Path

import pytest

from callbacks import (
    AffinityMatrix,
    CodebookUsage,
    CodeMap,
    ReconstructionDistance,
    ReconstructionMetrics,
    ScaleReconstructions,
    SubspaceAblation,
)
from callbacks.measure.metrics_file import MetricsFile
from tests.callbacks.measure.test_affinity_matrix import FakeTeacher
from tests.support.ranks import two_ranks
from tests.support.recipes import write_judge
from tests.support.tokenizers import tiny_scales
from tests.support.validation import Images, module_of, quiet_trainer


def measured(directory: Path, judge: Path, **arguments: object) -> dict[str, float]:
    callbacks = [
        CodebookUsage(),
        ReconstructionMetrics(),
        ReconstructionDistance("judge", str(judge)),
        ReconstructionDistance("stand_in", str(judge.with_name("mid.safetensors"))),
        AffinityMatrix(k=3),
        SubspaceAblation(max_images=1),
        ScaleReconstructions(),
        CodeMap(classes=2),
        MetricsFile(),
    ]
    module = module_of(tiny_scales())
    module.objective.teachers = {"mid": FakeTeacher()}
    trainer = quiet_trainer(directory, callbacks, **arguments)
    trainer.validate(module, Images(23), verbose=False)  # 24 rows, one of which only pads
    section = json.loads((directory / "metrics.json").read_text())["validate"]
    assert section["n"] == 23
    return section["metrics"]


@pytest.mark.cluster
def test_two_ranks_log_the_metrics_of_one(tmp_path: Path) -> None:
    judge = write_judge(tmp_path / "judge.safetensors", 2)
    alone = measured(tmp_path / "alone", judge)
    together = measured(tmp_path / "together", judge, **two_ranks())
    # which patches of an image are drawn depends on what came before on its rank
    # and codes of an untrained tokenizer give ties between neighbours, of which CKNNA takes the first
    compared = [name for name in alone if not name.startswith(("val/silhouette/patch", "val/cknna"))]
    assert len(compared) > 25
    for name in compared:
        assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-4), name
    assert together.keys() == alone.keys()
    for one, other in zip(*(sorted((tmp_path / name).glob("*.png")) for name in ("alone", "together")), strict=True):
        assert one.name == other.name
