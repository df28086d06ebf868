"""Extraction: the tokens of each view, as the tokenizer's decoder reads them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules import ExtractionModule
from tests.support.generated import CONTINUOUS, SCALAR, write_latent_runs

POSTERIOR = {**CONTINUOUS, "init_args": {"code_dim": 3, "kl_weight": 1e-6}}


def extracted(root: Path, quantizer: dict[str, Any]) -> tuple[ExtractionModule, torch.Tensor, dict[str, torch.Tensor]]:
    """A module, images (2, 3, 3, 16, 16) of three views, and what it predicts for them."""
    write_latent_runs(root, quantizer)
    module = ExtractionModule(str(root / "tokenizer/tiny"))
    images = torch.randn(2, 3, 3, 16, 16)
    batch = {"image": images, "label": torch.tensor([4, 1]), "index": torch.tensor([7, 8])}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        predicted = module.predict_step(batch, 0)
    assert predicted["label"] is batch["label"] and predicted["index"] is batch["index"]
    return module, images.flatten(0, 1), predicted


def test_codes_come_with_their_vectors(tmp_path: Path) -> None:
    module, images, predicted = extracted(tmp_path, SCALAR)
    with torch.no_grad():
        codes = module.tokenizer.encode(images).codes
    assert torch.equal(predicted["codes"], codes.unflatten(0, (2, 3))) and module.spec == module.tokenizer.spec
    vectors = module.tokenizer.embed_codes(codes).unflatten(0, (2, 3))
    torch.testing.assert_close(predicted["latents"], vectors, atol=1e-6, rtol=0)
    assert module.latent_shape == (3, 2, 2) == predicted["latents"].shape[2:]


@pytest.mark.parametrize("quantizer", [CONTINUOUS, POSTERIOR])
def test_a_tokenizer_without_codes_yields_latents_and_a_posterior_its_mean(
    quantizer: dict[str, Any], tmp_path: Path
) -> None:
    module, images, predicted = extracted(tmp_path, quantizer)
    with torch.no_grad():
        features = module.tokenizer.projection(module.tokenizer.encoder(images))
    assert features.shape[1] == (3 if quantizer is CONTINUOUS else 6)
    assert "codes" not in predicted and module.spec is None
    assert torch.equal(predicted["latents"], features[:, :3].unflatten(0, (2, 3)))
