"""Measurements of the codes of a finished tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from commands import codes
from commands.preset import image_data, real_images, spread
from polytoken.loading import load_tokenizer
from polytoken.metrics.frechet import FeatureStatistics, frechet_distance
from polytoken.metrics.images import to_uint8
from polytoken.metrics.perturbation import CodePerturbation, Perturbation
from tests.support.generated import CONTINUOUS, write_latent_runs, write_runs
from tests.support.precision import tf32_of_convolutions
from tests.support.recipes import CONFIGS, write_judge

OPTIONS = {"preset": None, "runs": Path("runs"), "extractor": None, "weights": None}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_judge(Path("runs/digits/teacher/judge.safetensors"))


def described(run: Path) -> Path:
    """The run with the configuration that `cli.py` leaves."""
    data = yaml.safe_load((CONFIGS / "presets/digits/tokenizer.yaml").read_text())["data"]
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data, "run": {"preset": "digits"}}))
    return run


def measured(run: Path, *more: str) -> dict:
    codes.main(["--run", str(run), *more])
    return json.loads((run / "codes.json").read_text())


def test_distance_after_perturbation_is_that_of_decoded_codes(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_runs(Path("runs/digits"), image_size=32)
    run = described(Path("runs/digits/tokenizer/tiny"))
    with monkeypatch.context() as patch:
        tf32 = tf32_of_convolutions(patch)
        found = measured(run, "--alpha", "0.7", "--beta", "0.8", "--delta", "3", "--seed", "5", "--max-images", "60")
    assert tf32 == {False}
    assert "codes seen" in capsys.readouterr().out
    assert found["perturbation"] == {"alpha": 0.7, "beta": 0.8, "delta": 3, "seed": 5}
    assert found["neighbours"] == [3, 3] and found["bits_per_image"] == 16 * 2 * 4

    tokenizer, judge = load_tokenizer(run), codes.network_of(run, codes.Namespace(**OPTIONS))
    data = image_data(run / "config.yaml")
    batches = list(real_images(data, "validation", spread(len(data.source.split("validation")), 60)))
    images, index = (torch.cat([batch[name] for batch in batches]) for name in ("image", "index"))
    with torch.no_grad():
        encoding = tokenizer.encode(images)
        replaced = CodePerturbation(tokenizer.quantizer, Perturbation(0.7, 0.8, 3, 5))(encoding.codes, index)
        shown = {
            "original": images,
            "reconstructed": tokenizer.decode(encoding.quantized).image,
            "perturbed": tokenizer.decode_codes(replaced),
        }
    features = {}
    for name, pixels in shown.items():
        features[name] = FeatureStatistics(judge.num_features)
        features[name].update(judge(to_uint8(pixels)).pooled)
    for name, key in (("reconstructed", "rfd/judge"), ("perturbed", "pfd/judge")):
        expected = float(frechet_distance(features[name].compute(), features["original"].compute()))
        assert found["metrics"][name][key]["value"] == pytest.approx(expected, rel=1e-4), name
        assert found["metrics"][name][key]["n"] == len(images)
    for sub_code, at in enumerate(found["positions"]):
        for position in (0, 7, 15):
            counts = np.bincount(encoding.codes[:, sub_code, position].numpy(), minlength=16)
            shares = counts[counts > 0] / counts.sum()
            assert at["usage"][position] == pytest.approx((counts > 0).mean())
            assert at["perplexity"][position] == pytest.approx(float(2 ** -(shares * np.log2(shares)).sum()))


def test_without_replacement_it_is_the_distance_of_reconstructions() -> None:
    write_runs(Path("runs/digits"), image_size=32)
    run = described(Path("runs/digits/tokenizer/tiny"))
    sets = measured(run, "--alpha", "0", "--max-images", "20")["metrics"]
    assert sets["perturbed"]["pfd/judge"]["value"] == pytest.approx(
        sets["reconstructed"]["rfd/judge"]["value"], rel=1e-3
    )


def test_a_tokenizer_without_codes_has_bits_only(capsys: pytest.CaptureFixture) -> None:
    write_latent_runs(Path("runs/digits"), CONTINUOUS, image_size=32)
    run = described(Path("runs/digits/tokenizer/tiny"))
    found = measured(run)
    assert found["metrics"] == {} and codes.metrics_of(found) == {"val/code_bits": 16 * 3 * 16}
    assert "the bottleneck is continuous" in capsys.readouterr().out


def test_images_are_compared_at_the_size_of_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    write_runs(Path("runs/digits"), image_size=32)
    run = described(Path("runs/digits/tokenizer/tiny"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "model": {"init_args": {"metric_size": 16}}}))
    sizes = set()
    monkeypatch.setattr(codes, "to_uint8", lambda images: sizes.add(images.shape[-1]) or to_uint8(images))
    measured(run, "--max-images", "4")
    assert sizes == {16}


def test_too_few_images_and_foreign_settings_are_refused(capsys: pytest.CaptureFixture) -> None:
    write_runs(Path("runs/digits"), image_size=32)
    run = described(Path("runs/digits/tokenizer/tiny"))
    for options, expected in ((["--max-images", "1"], "at least 2 images"), (["--alpha", "2"], "alpha is 2.0")):
        with pytest.raises(SystemExit, match="2"):
            codes.main(["--run", str(run), *options])
        assert expected in capsys.readouterr().err
