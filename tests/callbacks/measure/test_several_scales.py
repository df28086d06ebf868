"""Measuring callbacks on tokenizers of several scales and branches."""

import json
from pathlib import Path

import pytest
import torch

from callbacks import AffinityMatrix, CodebookUsage, CodeMap, PSNRByClass
from polytoken.metrics import CodebookStatistics
from polytoken.tokenizers import Tokenizer
from tests.support.tokenizers import tiny_folded, tiny_scales
from tests.support.validation import Images, logged_metrics, module_of, quiet_trainer


@pytest.mark.parametrize("tokenizer", [tiny_scales(), tiny_folded()], ids=["convolutional", "folded"])
def test_callbacks_measure_the_sum_of_all_scales_and_the_codes_of_each(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = Images(12)
    measuring = [AffinityMatrix(k=3), CodeMap(classes=2), CodebookUsage(), PSNRByClass()]
    trainer = quiet_trainer(tmp_path, measuring)
    trainer.validate(module_of(tokenizer), data, verbose=False)
    found = logged_metrics(trainer)
    with torch.no_grad():
        encoding = tokenizer.eval().encode(data.images[:12])
    statistics = CodebookStatistics((16, 16))
    statistics.update(encoding.codes)
    assert [found[f"val/usage/{branch}"] for branch in (0, 1)] == pytest.approx(statistics.compute().usage)
    detail, semantic = encoding.subspaces
    assert torch.equal(torch.cat([detail, semantic], 1), encoding.quantized)
    cosine = torch.cosine_similarity(detail, semantic, dim=1).mean().item()
    assert found["val/cosine/0_1"] == pytest.approx(cosine, abs=1e-5)
    assert {"val/silhouette/image/1", "val/silhouette/patch/0", "val/psnr_painted"} <= found.keys()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"affinity.png", "code_map.png", "usage.png", "psnr_by_class.json"} <= names
    assert json.loads((tmp_path / "affinity.json").read_text())["images"] == 12
