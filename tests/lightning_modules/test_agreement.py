"""Numbers that two sections of a configuration give are compared before the first step."""

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest

from datamodules import ImageDataModule, Views
from lightning_modules import ClassifierModule, ExtractionModule, MaskedPatchModule
from polytoken.classifier import SmallClassifier
from polytoken.errors import UserError
from polytoken.teachers.stand_in import SmallVisionTransformer
from tests.datamodules.memory import MemorySource, quiet_trainer
from tests.lightning_modules.test_dual_encoder import build as dual_encoder
from tests.lightning_modules.test_tokenizer import build as tokenizer
from tests.support.generated import SCALAR, write_latent_runs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def vision(**arguments: int) -> SmallVisionTransformer:
    return SmallVisionTransformer(16, 8, width=16, depth=1, num_heads=2, **arguments)


def extraction(place: Path) -> ExtractionModule:
    write_latent_runs(place, SCALAR)
    return ExtractionModule(str(place / "tokenizer/tiny"))


MODULES: dict[str, Callable[[Path], pl.LightningModule]] = {
    "model.tokenizer.image_size": lambda place: tokenizer(),
    "the image_size of the tokenizer in .*/tokenizer/tiny": extraction,
    "model.network.image_size": lambda place: MaskedPatchModule(vision(), "unused"),
    "model.classifier.image_size": lambda place: ClassifierModule(vision(num_classes=2), "unused"),
    "model.image.image_size": lambda place: dual_encoder(place, classes={"even": "even", "odd": "odd"}),
}


@pytest.mark.parametrize("holder", MODULES)
def test_images_of_another_size_are_refused_at_set_up(holder: str, tmp_path: Path) -> None:
    module = MODULES[holder](tmp_path)
    data = ImageDataModule(MemorySource(), 32, batch_size=2, num_workers=0, views=Views())
    trainer = quiet_trainer(max_steps=1, default_root_dir=tmp_path)
    commands = [trainer.predict] if isinstance(module, ExtractionModule) else [trainer.fit, trainer.validate]
    for command in commands:
        with pytest.raises(ValueError, match=f"data.image_size is 32, and {holder} is 16: set data.image"):
            command(module, datamodule=data)


def test_a_classifier_of_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    for network in (SmallClassifier(3, [8]), vision(num_classes=3)):
        module = ClassifierModule(network, "unused")
        with pytest.raises(ValueError, match="data.source has 2 classes, and model.classifier.num_classes is 3"):
            quiet_trainer(max_steps=1).fit(module, datamodule=ImageDataModule(MemorySource(), 16, 2, num_workers=0))


def test_a_classifier_without_a_validation_is_refused(tmp_path: Path) -> None:
    data = ImageDataModule(MemorySource(), 16, 2, num_workers=0)
    for module in (
        ClassifierModule(vision(num_classes=2), "unused"),
        dual_encoder(tmp_path, classes={"even": "even", "odd": "odd"}),
    ):
        with pytest.raises(UserError, match="trainer.limit_val_batches is 0, and the accuracy is part of the file"):
            quiet_trainer(max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
