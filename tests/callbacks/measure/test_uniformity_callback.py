import json
from pathlib import Path

import pytest
import torch

from callbacks import Uniformity
from callbacks.measure.metrics_file import MetricsFile
from polytoken.metrics.uniformity import bins_hit, entropy_ratio, ks_to_uniform, rmse_to_uniform
from polytoken.quantizers import FiniteScalarQuantizer
from polytoken.quantizers.finite_scalar import vectors_to_digits
from polytoken.tokenizers import ConvolutionalTokenizer
from tests.support.ranks import two_ranks
from tests.support.tokenizers import tiny_tokenizer
from tests.support.validation import Images, logged_metrics, module_of, quiet_trainer

LEVELS = (17, 9, 4)


def tokenizer(cells: str, num_sub_codes: int = 1) -> ConvolutionalTokenizer:
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer(LEVELS, cells=cells, num_sub_codes=num_sub_codes)
    return ConvolutionalTokenizer(quantizer, 16, 32, (1, 1), num_res_blocks=1, attention=False)


@pytest.mark.parametrize(("cells", "num_sub_codes"), [("rounding", 1), ("equal", 3)])
def test_metrics_cover_all_latents_of_real_images(cells: str, num_sub_codes: int, tmp_path: Path) -> None:
    module, data = module_of(tokenizer(cells, num_sub_codes)), Images()
    trainer = quiet_trainer(tmp_path, [Uniformity()])
    trainer.validate(module, data, verbose=False)
    logged = logged_metrics(trainer)
    with torch.no_grad():
        latents = torch.cat(module.eval().tokenizer.encode(data.images[:10]).latents, dim=1)
    values = latents.permute(0, 2, 3, 1).flatten(0, 2)
    digits = vectors_to_digits(values, torch.tensor(LEVELS), cells)
    counts = [torch.bincount(column, minlength=size) for column, size in zip(digits.T, LEVELS, strict=True)]
    for name, function, columns, error in (
        ("ks", ks_to_uniform, values.T, 1 / 4096),
        ("rmse_uniform", rmse_to_uniform, values.T, 1 / 4096),
        ("entropy_ratio", entropy_ratio, counts, 1e-6),
        ("bins_hit", bins_hit, counts, 1e-6),
    ):
        expected = torch.stack([function(column) for column in columns]).mean().item()
        assert logged[f"val/{name}"] == pytest.approx(expected, abs=error + 1e-6), name


def validated(directory: Path, **arguments: object) -> dict[str, float]:
    trainer = quiet_trainer(directory, [Uniformity(), MetricsFile()], **arguments)
    trainer.validate(module_of(tokenizer("rounding")), Images(23), verbose=False)
    return json.loads((directory / "metrics.json").read_text())["validate"]["metrics"]


@pytest.mark.cluster
def test_two_ranks_log_the_metrics_of_one(tmp_path: Path) -> None:
    alone = validated(tmp_path / "alone")
    assert validated(tmp_path / "together", **two_ranks()) == pytest.approx(alone, abs=1e-6)
    assert len(alone) == 4


def test_a_quantizer_with_a_codebook_is_rejected(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, [Uniformity()], max_steps=1, max_epochs=-1)
    with pytest.raises(ValueError, match="this tokenizer's is FactorizedQuantizer: leave the callback out"):
        trainer.fit(module_of(tiny_tokenizer()), Images())
    assert trainer.global_step == 0, "before the first step"
