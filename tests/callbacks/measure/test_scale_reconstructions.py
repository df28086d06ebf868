from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import ScaleReconstructions
from polytoken.errors import UserError
from polytoken.images import resize_displayed
from polytoken.metrics import psnr, to_uint8
from polytoken.tokenizers import Tokenizer
from tests.support.tokenizers import tiny_folded, tiny_scales, tiny_tokenizer
from tests.support.validation import Images, logged_metrics, module_of, quiet_trainer


@pytest.mark.parametrize("tokenizer", [tiny_scales(1), tiny_folded()], ids=["convolutional", "folded"])
def test_metrics_and_picture(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = Images()
    trainer = quiet_trainer(tmp_path, [ScaleReconstructions(rows=3, pixels=96)])
    trainer.validate(module_of(tokenizer), data, verbose=False)
    images, found = data.images[:10], logged_metrics(trainer)
    assert tokenizer.spec is not None
    shown = [images]
    with torch.no_grad():
        codes = tokenizer.eval().encode(images).codes
        first = 0
        for number, (height, width) in enumerate(tokenizer.spec.scales, start=1):
            first += height * width
            *_, total = tokenizer.partial_sums(codes[:, :, :first])
            shown.append(tokenizer.decode(total).image)
            expected = psnr(to_uint8(shown[-1]), to_uint8(images)).mean().item()
            assert found.pop(f"val/scales/psnr_{number}") == pytest.approx(expected, abs=1e-3)
    assert not found
    assert not torch.equal(to_uint8(shown[1]), to_uint8(shown[2])), "the scales differ"
    with Image.open(tmp_path / "scales.png") as picture:
        pixels = np.array(picture)
    pitch = (pixels.shape[1] - 2) // len(shown)
    second = pixels[pixels.shape[0] - 2 * 98 :][:96:6]
    for column, image in enumerate(shown):
        cells = second[:, 2 + column * pitch : 2 + column * pitch + 96 : 6].astype(int)
        assert np.abs(cells - to_uint8(image)[1].permute(1, 2, 0).numpy()).max() <= 1, column


def test_scales_are_compared_at_the_metric_size(tmp_path: Path) -> None:
    tokenizer, data = tiny_scales(1), Images()
    module, trainer = module_of(tokenizer), quiet_trainer(tmp_path, [ScaleReconstructions(rows=3)])
    module.metric_size = 8
    trainer.validate(module, data, verbose=False)
    images = data.images[:10]
    with torch.no_grad():
        first = next(iter(tokenizer.partial_sums(tokenizer.eval().encode(images).codes)))
        shown = [to_uint8(resize_displayed(one, 8)) for one in (tokenizer.decode(first).image, images)]
    assert logged_metrics(trainer)["val/scales/psnr_1"] == pytest.approx(psnr(*shown).mean().item(), abs=1e-3)


def test_one_scale_is_refused_before_the_first_step(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, [ScaleReconstructions()], max_steps=1, max_epochs=-1)
    with pytest.raises(UserError, match="this one has one scale: leave the callback out"):
        trainer.fit(module_of(tiny_tokenizer()), Images())
    assert trainer.global_step == 0
