"""Probes of a tokenizer's run: their vectors, their output, and validation of the input."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from commands import probe
from commands.preset import image_data, real_images, spread
from polytoken.files import file_sha256
from polytoken.loading import load_tokenizer
from polytoken.metrics.probes import (
    Labelled,
    PooledFeatures,
    accuracy,
    logistic_regression,
    nearest_class_mean,
    nearest_neighbours,
    standardise,
)
from tests.polytoken.metrics.test_probes import clouds
from tests.support.generated import write_folded_run, write_representation_run, write_runs

DATA = {
    "class_path": "datamodules.ImageDataModule",
    "init_args": {
        "source": {"class_path": "datamodules.DigitsSource", "init_args": {"size": 16}},
        "image_size": 16,
        "num_workers": 0,
    },
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_runs(tmp_path / "runs/digits")
    run = tmp_path / "runs/digits/tokenizer/tiny"
    (run / "config.yaml").write_text(yaml.safe_dump({"data": DATA}))
    return run


def probed(run: Path, *more: str) -> dict:
    probe.main(["--run", str(run), "--max-train", "200", *more])
    return json.loads((run / "probes.json").read_text())


def test_probes_use_the_frozen_vectors(run: Path, capsys: pytest.CaptureFixture) -> None:
    result = probed(run)
    rows = {(row["probe"], row["feature"]): row for row in result["probes"]}
    assert len(rows) == 18 and rows["linear", "after/all"]["num_features"] == 8

    tokenizer, data = load_tokenizer(run), image_data(run / "config.yaml")

    def vectors(split: str, at_most: int | None) -> dict[str, Labelled]:
        rows = spread(len(data.source.split(split)), at_most)  # type: ignore[arg-type]
        batches = list(real_images(data, split, rows))  # type: ignore[arg-type]
        labels = torch.cat([batch["label"] for batch in batches])
        encodings = [tokenizer.encode(batch["image"]) for batch in batches]
        after, before = (
            [torch.cat([getattr(e, name)[i] for e in encodings]).mean((2, 3)) for i in range(2)]
            for name in ("subspaces", "latents")
        )
        wanted = {"after/1": after[1], "before/0": before[0], "after/all": torch.cat(after, 1)}
        return {key: Labelled(rows, labels) for key, rows in wanted.items()}

    train, validation = vectors("train", 200), vectors("validation", None)
    for key, given in train.items():
        asked = validation[key]
        scaled, features = standardise(given.features, asked.features)
        for kind, fit in (("linear", logistic_regression), ("nearest_class_mean", nearest_class_mean)):
            expected = accuracy(fit(Labelled(scaled, given.labels), features), asked.labels)
            assert rows[kind, key]["value"] == pytest.approx(expected.value, abs=0.006), (kind, key)
        voted = accuracy(nearest_neighbours(given, asked.features, 20), asked.labels)
        assert rows["nearest_neighbours", key]["value"] == pytest.approx(voted.value, abs=0.006), "not standardised"
    assert rows["linear", "before/0"]["value"] != rows["linear", "after/0"]["value"]

    assert (result["n_train"], result["n_validation"], result["chance"]) == (200, 355, 0.1)
    assert 0.09 < result["majority"] < 0.11
    assert result["checkpoint"]["sha256"] == file_sha256(run / "checkpoints/last.ckpt")
    assert result["checkpoint"]["averaged"] is False and result["settings"]["pooling"] == "mean"
    assert result["settings"]["neighbours"] == 20
    printed = " ".join(capsys.readouterr().out.split())
    assert "chance 10.0%" in printed and "nearest class mean" in printed


def test_branches_of_several_scales(tmp_path: Path) -> None:
    """Before quantization the features of a branch are read, after it the sum of all its scales."""
    run = write_folded_run(tmp_path / "runs/digits/tokenizer/folded")
    (run / "config.yaml").write_text(yaml.safe_dump({"data": DATA}))
    rows = {row["feature"]: row for row in probed(run)["probes"] if row["probe"] == "linear"}
    assert {key: row["num_features"] for key, row in rows.items()} == {
        f"{side}/{name}": 8 if name == "all" else 4 for name in ("0", "1", "all") for side in ("before", "after")
    }
    tokenizer, data = load_tokenizer(run), image_data(run / "config.yaml")
    images = next(iter(real_images(data, "validation")))["image"]
    features = PooledFeatures(tokenizer, list(rows), "mean")
    features.add(images, torch.zeros(len(images)))
    with torch.no_grad():
        before, encoding = tokenizer.features(images), tokenizer.encode(images)
        *_, total = tokenizer.partial_sums(encoding.codes)
    for side, maps in (("before", before), ("after", total)):
        branches = maps.mean((2, 3)).split(4, dim=1)
        for index, expected in enumerate(branches):
            torch.testing.assert_close(features.of(f"{side}/{index}").features, expected, rtol=0, atol=1e-5)


def test_features_pooling_and_neighbours_are_arguments(run: Path) -> None:
    options = ["--features", "after/1", "--pooling", "flatten", "--neighbours", "3"]
    result = probed(run / "checkpoints/..", *options)
    assert [(row["probe"], row["feature"], row["num_features"], row["fit"][:3]) for row in result["probes"]] == [
        ("linear", "after/1", 16, "sci"),
        ("nearest_class_mean", "after/1", 16, "clo"),
        ("nearest_neighbours", "after/1", 16, "k=3"),
    ]


def test_features_of_a_foundation_model_are_probed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = write_representation_run(tmp_path / "runs/digits/tokenizer/ideal")
    (run / "config.yaml").write_text(yaml.safe_dump({"data": DATA}))
    widths = {row["feature"]: row["num_features"] for row in probed(run)["probes"]}
    names = ("foundation/deep", "foundation/shallow", "decoded/deep", "decoded/shallow")
    assert widths == {"before/0": 4, "after/0": 4, **dict.fromkeys(names, 32)}
    pooled = probed(run, "--pooling", "attention")["probes"]
    assert {row["feature"]: row["num_features"] for row in pooled} == {"foundation/deep": 32, "decoded/deep": 32}

    tokenizer = load_tokenizer(run)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    features = PooledFeatures(tokenizer, ["decoded/deep"], "attention")
    features.add(images, torch.zeros(3))
    with torch.no_grad():
        deep = tokenizer(images)[0].features["deep"].permute(0, 2, 3, 1)
    torch.testing.assert_close(features.of("decoded/deep").features, tokenizer.foundation.pool(deep))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        probe.main(["--run", str(run), "--pooling", "attention", "--features", "decoded/shallow"])
    assert "foundation/deep or decoded/deep, and not decoded/shallow" in capsys.readouterr().err


def test_invalid_input_is_rejected(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def refusal(place: Path, *more: str) -> str:
        with pytest.raises(SystemExit) as stop:
            probe.main(["--run", str(place), *more])
        assert stop.value.code == 2
        return capsys.readouterr().err

    unknown = refusal(run, "--features", "decoded/deep")
    assert "no feature 'decoded/deep'" in unknown and "before/all, before/0" in unknown
    assert "this tokenizer has none" in refusal(run, "--pooling", "attention")
    assert "--max-train is 0" in refusal(run, "--max-train", "0")
    assert "--neighbours is 0" in refusal(run, "--neighbours", "0")
    assert "not the checkpoint of a tokenizer" in refusal(run.parent.parent / "stage2/tiny")
    assert "no checkpoint" in refusal(tmp_path / "none")
    (run / "config.yaml").unlink()
    assert "config.yaml, which names the images" in refusal(run)
    assert not (run / "probes.json").exists()


def test_many_features_are_fitted_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = clouds(300, 0.8, 0), clouds(90, 0.8, 1)
    scaled, asked = standardise(train.features, validation.features)
    train, validation = Labelled(scaled, train.labels), Labelled(asked, validation.labels)
    exact, how = probe.fit_linear(train, validation.features)
    assert "lbfgs" in how
    monkeypatch.setattr(probe, "MOST_ENTRIES", 800)
    batched = probe.fit_in_batches(train, validation.features, epochs=30, batch_size=30)
    assert (batched == exact).double().mean() > 0.95
    assert accuracy(batched, validation.labels).value > 0.95
    assert "AdamW" in probe.fit_linear(train, validation.features)[1]


def test_images_of_another_size_than_the_tokenizers_are_refused(run: Path, capsys: pytest.CaptureFixture) -> None:
    data = {**DATA, "init_args": {**DATA["init_args"], "image_size": 32}}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    with pytest.raises(SystemExit) as error:
        probe.main(["--run", str(run)])
    assert error.value.code == 2
    assert "data.image_size is 32, and the image_size of the tokenizer in" in capsys.readouterr().err
