"""Settings that undo training are refused by name, in every room."""

import math
import pickle

import pytest

from callbacks.checkpoint.ema import EMA
from callbacks.checkpoint.last_checkpoint import LastCheckpoint
from callbacks.measure.code_map import CodeMap
from callbacks.predict.conditional_writer import ConditionalWriter
from callbacks.predict.sample_writer import SampleWriter
from callbacks.predict.token_writer import TokenWriter
from datamodules.images import ImageDataModule
from datamodules.labels import MOST_IMAGES, LabelDataModule
from datamodules.sources.digits import DigitsSource
from lightning_modules.classifier import ClassifierModule
from lightning_modules.generator import GeneratorModule
from lightning_modules.tokenizer import TokenizerModule
from polytoken.classifier import SmallClassifier
from polytoken.discriminators.patch import PatchDiscriminator
from polytoken.errors import SettingError
from polytoken.losses.adversarial import Adversarial
from polytoken.losses.consistency import Consistency
from polytoken.losses.lecam import LeCam
from polytoken.losses.reconstruction import Reconstruction
from polytoken.optimization import OptimizerConfig
from polytoken.quantizers import (
    ContinuousBottleneck,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    MultiScaleQuantizer,
    VectorQuantizer,
)
from polytoken.ranges import above, at_least, below_one, within
from polytoken.tokenizers.convolutional import ConvolutionalTokenizer

NAN, INFINITE = math.nan, math.inf
SETTINGS = {
    OptimizerConfig: {
        "learning_rate": [0.0, -1.0, NAN, INFINITE],
        "betas": [(2.0, 0.9), (0.9, 1.0), (NAN, 0.5)],
        "weight_decay": [-0.1, NAN],
        "warmup_steps": [-1],
        "initial_fraction": [1.5],
        "final_fraction": [-0.1],
    },
    VectorQuantizer: {
        "codebook_size": [0, -4, 10**12],
        "code_dim": [0],
        "commitment_weight": [-1.0],
        "entropy_weight": [-1e6, NAN],
        "codebook_weight": [-1.0],
        "entropy_temperature": [0.0],
        "max_matrix_elements": [0],
    },
    MultiScaleQuantizer: {"codebook_size": [0, 10**12], "code_dim": [0], "commitment_weight": [-1.0]},
    LookupFreeQuantizer: {"bits": [0, 10**12], "entropy_weight": [-1.0], "diversity": [-1.0], "temperature": [NAN]},
    FiniteScalarQuantizer: {"alpha": [0.0, NAN]},
    ContinuousBottleneck: {"code_dim": [0], "kl_weight": [-1.0]},
    PatchDiscriminator: {"base_channels": [0], "num_layers": [-1]},
    LeCam: {"weight": [-1.0], "decay": [1.0]},
    Consistency: {"weight": [-1.0]},
    Reconstruction: {"weight": [-1.0, NAN], "start_step": [-1]},
    SmallClassifier: {"num_classes": [0], "widths": [(), (8, 0)]},
    EMA: {"decay": [1.0, -0.1, NAN]},
    LastCheckpoint: {"every_n_train_steps": [0], "every_minutes": [0.0, NAN]},
    SampleWriter: {"grid_rows": [0, 10**9], "grid_columns": [0]},
    TokenWriter: {"images_per_shard": [0]},
    ConditionalWriter: {"grid_columns": [0]},
    CodeMap: {"seed": [-5, 10**30]},
}


@pytest.mark.parametrize(
    ("build", "name", "value"),
    [(build, name, value) for build, names in SETTINGS.items() for name, values in names.items() for value in values],
)
def test_a_setting_that_undoes_training_is_refused(build: type, name: str, value: object) -> None:
    with pytest.raises(SettingError, match=f"^{build.__name__}: {name} (is|holds) ") as refusal:
        build(**{name: value})
    assert refusal.value.name == name


@pytest.mark.parametrize(
    ("name", "value"),
    [("gradient_clip", -1.0), ("gradient_clip", 0.0), ("accumulate_steps", 0), ("max_nonfinite_steps", -1)],
)
def test_settings_of_a_tokenizer_module(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"TokenizerModule: {name} is "):
        TokenizerModule(None, None, **{name: value})  # type: ignore[arg-type]


def test_settings_of_other_modules() -> None:
    for name, value in (("carried_learning_rate", 0.0), ("freeze_carried_steps", -1), ("max_nonfinite_steps", -1)):
        with pytest.raises(SettingError, match=name):
            GeneratorModule(None, init_from="x", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="label_smoothing"):
        ClassifierModule(SmallClassifier(), "x", label_smoothing=1.0)
    with pytest.raises(SettingError, match="weight"):
        Adversarial(PatchDiscriminator(8), weight=-0.5)
    for name, value in (("channel_multipliers", ()), ("channel_multipliers", (1, 0)), ("base_channels", 0)):
        with pytest.raises(SettingError, match=name):
            ConvolutionalTokenizer(VectorQuantizer(4, 4), image_size=8, **{name: value})


def test_settings_of_data() -> None:
    wrong = {"batch_size": [0], "num_workers": [-1, 10_000], "seed": [-5, 10**30]}
    for name, value in ((name, value) for name, values in wrong.items() for value in values):
        with pytest.raises(SettingError, match=name):
            ImageDataModule(DigitsSource(), **{name: value})
    for count in (0, 10**9, 10**15):
        with pytest.raises(SettingError, match=f"num_images is {count}; it must be from 1 to {MOST_IMAGES:,}"):
            LabelDataModule(count)


def test_edges_are_allowed() -> None:
    at_least(1, "x", one=1, none=None, several=(1, 2))
    above(0, "x", small=1e-30)
    within(0, 1, "x", zero=0, one=1)
    below_one("x", zero=0.0)


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(SettingError("depth", 0, "trunk: depth is 0")))
    assert isinstance(error, SettingError)
    assert (error.name, error.value, str(error)) == ("depth", 0, "trunk: depth is 0")
