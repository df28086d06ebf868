"""Both stages of the captioning probe through cli.py, on the embedded photographs and their captions."""

import json
from pathlib import Path

import pytest
import torch

from datamodules import CaptionDataModule, CaptionedPhotos
from lightning_modules.captioning import gather_captions
from polytoken.captioning import Captioner
from polytoken.features import features_of
from polytoken.loading import load_tokenizer
from polytoken.metrics.captions import caption_metrics
from tests.support.commands import exit_code
from tests.support.generated import write_runs
from tests.support.recipes import CONFIGS

SMALL = {
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 2,
    "trainer.enable_progress_bar": "false",
    "data.init_args.batch_size": 4,
    "data.init_args.image_size": 16,
    "data.init_args.source.init_args.train_crops_per_photo": 2,
    "data.init_args.source.init_args.validation_crops_per_photo": 1,
    "model.init_args.language.init_args.width": 16,
    "model.init_args.max_tokens": 8,
    "model.init_args.feature": "before/1",
    "model.init_args.tokenizer_run": "runs/photos/tokenizer/tiny",
}
STAGE1, STAGE2 = "caption_stage1/fq_dual", "caption_stage2/fq_dual"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    write_runs(Path("runs/photos"))


def fit(recipe: str, **changes: object) -> int:
    files = [CONFIGS / f"{recipe}.yaml", CONFIGS / "presets/photos/caption.yaml"]
    files += [CONFIGS / "presets/photos/caption_stage2.yaml"] if recipe == "caption_stage2" else []
    arguments = [part for file in files for part in ("--config", str(file))]
    given = {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}}
    return exit_code("fit", *arguments, *(part for name, value in given.items() for part in (f"--{name}", str(value))))


def checkpoint(stage: str) -> dict:
    return torch.load(f"runs/photos/{stage}/checkpoints/last.ckpt", weights_only=True)


def projector(stage: str) -> torch.Tensor:
    return checkpoint(stage)["state_dict"]["captioner.projector.0.weight"]


def test_two_steps_of_both_stages(capsys: pytest.CaptureFixture) -> None:
    assert fit("caption_stage1") == 0
    keys = set(checkpoint(STAGE1)["state_dict"])
    assert keys and all(name.startswith("captioner.projector.") for name in keys), "the frozen networks are not saved"
    captions = json.loads(Path("runs/photos", STAGE1, "captions.json").read_text())
    metrics = json.loads(Path("runs/photos", STAGE1, "metrics.json").read_text())["validate"]
    assert len(captions) == metrics["n"] == 14
    assert captions[3]["image"].startswith("data/chelsea.png") and "ginger cat" in captions[3]["references"][1]
    expected = caption_metrics([one["generated"] for one in captions], [one["references"] for one in captions])
    for name, value in expected.items():
        assert metrics["metrics"][f"val/{name}"] == pytest.approx(value)
    assert 4 < metrics["metrics"]["val/loss"] < 7

    rate = {"model__init_args__optimizer__learning_rate": 1e-30}
    batches = {"data__init_args__validation_batch_size": 5}  # the loss is a mean over tokens, whatever the batches
    assert fit("caption_stage2", model__init_args__init_from=f"runs/photos/{STAGE1}", **rate, **batches) == 0
    assert {name.split(".")[1] for name in checkpoint(STAGE2)["state_dict"]} == {"projector", "network"}
    torch.testing.assert_close(projector(STAGE2), projector(STAGE1), rtol=0, atol=0)
    later = json.loads(Path("runs/photos", STAGE2, "metrics.json").read_text())["validate"]["metrics"]
    assert later["val/loss"] == pytest.approx(metrics["metrics"]["val/loss"], rel=1e-5), "the same language model"

    assert (
        fit(
            "caption_stage2",
            run__stage="other",
            model__init_args__feature="after/1",
            **{"model__init_args__init_from": f"runs/photos/{STAGE1}"},
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "was trained with the feature 'before/1', and this run has 'after/1'" in error and "Traceback" not in error


def test_a_step_in_bfloat16_is_clipped() -> None:
    """As the preset for ImageNet trains; a gradient far below AdamW's epsilon moves nothing."""
    short = {"max_steps": 1, "limit_val_batches": 0, "precision": "bf16-mixed"}
    steps = {f"trainer__{name}": value for name, value in short.items()}
    for stage, clip in (("clipped", 1e-20), ("trained", 1.0)):
        given = {"run__stage": stage, "model__init_args__optimizer__warmup_steps": 0}
        assert fit("caption_stage1", trainer__gradient_clip_val=clip, **given, **steps) == 0
    assert (projector("clipped") - projector("trained")).abs().max() > 5e-4


@pytest.mark.slow
def test_a_language_model_that_stage_1_trained_is_taken_over(capsys: pytest.CaptureFixture[str]) -> None:
    start = {"model__init_args__init_from": "runs/photos/trained"}
    assert fit("caption_stage2", run__stage="trained", trainer__max_steps=1) == 0
    assert fit("caption_stage2", run__stage="next", model__init_args__optimizer__learning_rate=1e-30, **start) == 0
    before, after = (checkpoint(stage)["state_dict"] for stage in ("trained", "next"))
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert fit("caption_stage1", run__stage="frozen", **start) == 2
    assert "runs/photos/trained has trained its language model" in capsys.readouterr().err


def test_each_image_is_captioned_from_its_own_named_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the generation writes the mean of the features of each image."""

    def mean(self: Captioner, features: torch.Tensor, *_: int) -> list[str]:
        return [f"{value:.4f}" for value in features.mean((1, 2, 3)).tolist()]

    monkeypatch.setattr(Captioner, "generate", mean)
    assert fit("caption_stage1", trainer__max_steps=1, model__init_args__feature="after/0") == 0
    tokenizer = load_tokenizer("runs/photos/tokenizer/tiny")
    assert projector(STAGE1).shape[1] == tokenizer.subspace_channels[0]
    photos = CaptionedPhotos(192, validation_crops_per_photo=1)
    data = CaptionDataModule(photos, image_size=16, num_workers=0).dataset("validation")
    captions = json.loads(Path("runs/photos", STAGE1, "captions.json").read_text())
    images = torch.stack([data[index].image for index in range(14)])
    expected = features_of(tokenizer, images, "after/0")[0].mean((1, 2, 3))
    torch.testing.assert_close(torch.tensor([float(one["generated"]) for one in captions]), expected, rtol=0, atol=1e-4)
    assert len(expected.unique()) > 4
    assert [one["references"] for one in captions] == [list(photos.split("validation").captions(i)) for i in range(14)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model__init_args__feature": "decoded/deep"}, "no feature 'decoded/deep' in runs/photos/tokenizer/tiny"),
        (
            {"data__init_args__image_size": 32},
            "data.image_size is 32, and the image_size of the tokenizer in",
        ),
        ({"data__class_path": "datamodules.ImageDataModule"}, "set data.class_path to datamodules.CaptionDataModule"),
        ({"model__init_args__beams": 0}, "CaptioningModule: beams is 0; it must be at least 1"),
        ({"model__init_args__init_from": "runs/photos/tokenizer/tiny"}, "is not the checkpoint of a captioning probe"),
    ],
)
def test_bad_input_is_one_sentence(changes: dict, says: str, capsys: pytest.CaptureFixture) -> None:
    assert fit("caption_stage1", **changes) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error
    assert not Path("runs/photos/caption_stage1/fq_dual/checkpoints/last.ckpt").exists()


def test_captions_of_all_ranks_are_sorted_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    here: dict = {index: {"image": str(index), "generated": "", "references": []} for index in (2, 0)}
    assert [one["image"] for one in gather_captions(here)] == ["0", "2"]

    def gather(every: list, found: dict) -> None:
        every[:] = [found, {1: {"image": "1", "generated": "", "references": []}}]

    monkeypatch.setattr("lightning_modules.captioning.several_ranks", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    assert [one["image"] for one in gather_captions(here)] == ["0", "1", "2"]
