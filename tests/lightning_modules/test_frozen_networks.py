"""A checkpoint records the frozen networks of its tokenizer, and no command goes on with others."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lightning_modules import TokenizerModule
from polytoken.classifier import SmallClassifier
from polytoken.discriminators import DinoDiscriminator
from polytoken.errors import UserError
from polytoken.fingerprint import FROZEN, OBJECTIVE_FROZEN
from polytoken.loading import load_tokenizer
from polytoken.losses import Adversarial, ClassifierFeatures, FeatureAlignment, Reconstruction, TokenizerObjective
from polytoken.teachers import SmallVisionTransformer, Teacher
from tests.lightning_modules.test_tokenizer import batches, build
from tests.support.generated import write_representation_run
from tests.support.tokenizers import tiny_representation, tiny_tokenizer


def module(directory: Path) -> TokenizerModule:
    return TokenizerModule(tiny_representation(directory), TokenizerObjective(reconstruction=Reconstruction()))


def replace_foundation(directory: Path) -> None:
    """Another network of the same kind, as `make teacher` writes one when it trains again."""
    torch.manual_seed(7)
    network = SmallVisionTransformer(16, patch_size=8, width=32, depth=3, num_heads=4, pooling="token")
    network.save(directory / "foundation.safetensors")


def trainer(directory: Path, steps: int) -> pl.Trainer:
    given = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    return pl.Trainer(max_steps=steps, accelerator="cpu", default_root_dir=directory, **given)


def test_a_run_resumes_with_its_own_foundation_model_alone(tmp_path: Path) -> None:
    first = trainer(tmp_path, 1)
    first.fit(module(tmp_path), batches(4, 16))
    path = tmp_path / "one.ckpt"
    first.save_checkpoint(path)
    trainer(tmp_path, 2).fit(module(tmp_path), batches(4, 16), ckpt_path=path, weights_only=True)
    made = module(tmp_path)
    replace_foundation(tmp_path)
    message = r"the checkpoint was trained on foundation = stand_in \w{12}, and here it is stand_in"
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, 3).fit(made, batches(4, 16), ckpt_path=path, weights_only=True)


def test_a_tokenizer_is_loaded_with_its_own_foundation_model_alone(tmp_path: Path) -> None:
    run = write_representation_run(tmp_path / "run")
    path = run / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    content[FROZEN] = load_tokenizer(run).frozen_identities()
    torch.save(content, path)
    load_tokenizer(run)
    torch.save({**content, FROZEN: content[FROZEN] | {"shallow": "block 2"}}, run / "checkpoints/other.ckpt")
    with pytest.raises(UserError, match="other.ckpt was trained on shallow = block 2, and here it is block 1: restore"):
        load_tokenizer(run / "checkpoints/other.ckpt")
    torch.save({**content, FROZEN: [1]}, run / "checkpoints/other.ckpt")
    with pytest.raises(UserError, match="its record of frozen networks is not a mapping"):
        load_tokenizer(run / "checkpoints/other.ckpt")
    (file,) = run.glob("**/foundation.safetensors")
    network = SmallVisionTransformer.load(file)
    torch.nn.init.normal_(network.trunk.patch_embed.proj.weight)
    network.save(file)
    with pytest.raises(UserError, match="last.ckpt was trained on foundation = stand_in"):
        load_tokenizer(run)


def guided(directory: Path) -> TokenizerModule:
    """A tokenizer whose objective reads a teacher, a classifier and a discriminator's backbone."""
    files = (str(directory / f"{name}.safetensors") for name in ("teacher", "backbone"))
    teacher, backbone = (Teacher("stand_in", file) for file in files)
    objective = TokenizerObjective(
        reconstruction=Reconstruction(),
        perceptual=ClassifierFeatures(str(directory / "classifier.safetensors")),
        alignment_high=FeatureAlignment("high", subspace=0),
        adversarial=Adversarial(DinoDiscriminator(backbone, [1]), start_step=0),
        teachers={"high": teacher},
    )
    return TokenizerModule(tiny_tokenizer(), objective)


def write_teacher(file: Path, seed: int) -> None:
    torch.manual_seed(seed)
    SmallVisionTransformer(16, patch_size=4, width=32, depth=2, num_heads=4, pooling="token").save(file)


def write_classifier(file: Path, seed: int) -> None:
    torch.manual_seed(seed)
    SmallClassifier(10, (8, 8)).save(file, accuracy=0.5)


WRITERS = {"teacher": write_teacher, "classifier": write_classifier, "backbone": write_teacher}


@pytest.mark.parametrize(
    ("replaced", "named"), [("teacher", "teacher high"), ("classifier", "perceptual"), ("backbone", "discriminator")]
)
def test_a_run_resumes_with_the_teachers_of_its_objective_alone(tmp_path: Path, replaced: str, named: str) -> None:
    for name, write in WRITERS.items():
        write(tmp_path / f"{name}.safetensors", 0)
    first = trainer(tmp_path, 1)
    first.fit(guided(tmp_path), batches(4, 16))
    path = tmp_path / "one.ckpt"
    first.save_checkpoint(path)
    trainer(tmp_path, 2).fit(guided(tmp_path), batches(4, 16), ckpt_path=path, weights_only=True)
    WRITERS[replaced](tmp_path / f"{replaced}.safetensors", 1)
    with pytest.raises(UserError, match=rf"the checkpoint was trained on {named} = \w+ \w{{12}}, and here it is"):
        trainer(tmp_path, 1).fit(guided(tmp_path), batches(4, 16), ckpt_path=path, weights_only=True)
    trainer(tmp_path, 1).validate(guided(tmp_path), batches(4, 16), ckpt_path=path, weights_only=True)
    content = torch.load(path, weights_only=True)
    del content[OBJECTIVE_FROZEN]
    torch.save(content, path)  # of an earlier version
    trainer(tmp_path, 2).fit(guided(tmp_path), batches(4, 16), ckpt_path=path, weights_only=True)


def test_a_tokenizer_without_frozen_networks_records_none() -> None:
    content: dict = {}
    build(None).on_save_checkpoint(content)
    assert FROZEN not in content and OBJECTIVE_FROZEN not in content
