"""Metrics by name, with their references, and rejection of non-finite values."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from artifacts.reference import target_of_file
from polytoken.metrics.frechet import Gaussian
from polytoken.metrics.image_metrics import Target, image_metrics
from polytoken.metrics.image_set import ImageSet
from tests.support.extractors import MeanColours, images


class Colours(MeanColours):
    """Network of mean colours in place of Inception."""

    name = "inception"


def test_reconstructions_are_split_in_turn_and_samples_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sorted classes, each predicted with certainty: one in each third, all in every tenth image."""
    monkeypatch.setattr("polytoken.metrics.image_set.SPLIT", 10)
    shades = torch.zeros(30, 3, 4, 4, dtype=torch.uint8)
    for row in range(30):
        shades[row, row // 10] = 255
    for use, splits, score in (
        ("generation", "10 images a split", 1.0),
        ("reconstruction", "10 splits, images dealt out in turn", 3.0),
    ):
        whole = ImageSet.for_use(Colours(), 30, False, use)  # type: ignore[arg-type]
        whole.add(shades)
        measured = whole.compute()
        assert measured.splits == splits and measured.score == pytest.approx(score)


def test_nan_is_not_clamped_to_zero() -> None:
    whole = ImageSet.for_use(Colours(), 40, keep_rows=False)
    whole.add(images(40))
    measured = whole.compute()
    broken = Gaussian(40, measured.features.mean, measured.features.covariance)
    target = replace(Target.of_images(measured, "these"), features=broken)
    assert image_metrics(measured, target)["gfid/inception"]["value"] == pytest.approx(0, abs=1e-9)
    assert image_metrics(measured, target)["gfid/inception"]["value"] >= 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polytoken.metrics.image_metrics.frechet_distance", lambda first, second: torch.tensor(torch.nan))
        assert np.isnan(image_metrics(measured, target)["gfid/inception"]["value"])
        patch.setattr("polytoken.metrics.image_metrics.frechet_distance", lambda first, second: torch.tensor(-1e-12))
        assert image_metrics(measured, target)["gfid/inception"]["value"] == 0  # rounded


def test_a_distance_records_its_split_and_number_of_images(tmp_path: Path) -> None:
    whole = ImageSet.for_use(Colours(), 40, keep_rows=True)
    whole.add(images(40))
    measured = whole.compute()
    figure = image_metrics(measured, Target.of_images(measured, "digits validation images"))["gfid/inception"]
    assert figure["reference_kind"] == "validation" and figure["reference_n"] == 40
    few = {"kind": "train", "source": "two", "number": 3, "image_size": 8, "extractor": "inception"}
    protocol = json.dumps({**few, "extractor_sha256": None, "resize": None})
    pictures = images(5).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "few.npz", mu=np.zeros(3), sigma=np.eye(3), protocol=np.array(protocol), arr_0=pictures)
    target = target_of_file(tmp_path / "few.npz", Colours(), (8, 8))
    assert target.notes[0].startswith("of the reference: 3 images for 3 features")
    assert target.rows is not None and torch.equal(target.rows, Colours()(images(5)).pooled)
    with pytest.raises(ValueError, match="images of 8 px, and these have 8 × 4"):
        target_of_file(tmp_path / "few.npz", Colours(), (8, 4))
