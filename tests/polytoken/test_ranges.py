"""Settings that undo training are refused by name, in every room."""

import math
import pickle
from typing import Any

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
from datamodules.sources.photos import PhotosSource
from lightning_modules.classifier import ClassifierModule
from lightning_modules.generator import GeneratorModule
from lightning_modules.tokenizer import TokenizerModule
from polytoken.classifier import SmallClassifier
from polytoken.discriminators.patch import PatchDiscriminator
from polytoken.errors import SettingError
from polytoken.generators.flow_matching import FlowMatching
from polytoken.generators.heads import AutoregressiveHead, MaskedBitHead, MultiMLPHead
from polytoken.generators.noise import SubTokenNoise
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
from polytoken.ranges import above, at_least, below_one, one_of, within
from polytoken.sampling import CategoricalSampler, FlowSampler, Forcing
from polytoken.tokenizers.convolutional import ConvolutionalTokenizer
from polytoken.tokenizers.feature_decoder import FeatureDecoderConfig
from polytoken.tokenizers.folded import VisionTransformerConfig

NAN, INFINITE = math.nan, math.inf
SETTINGS = {
    OptimizerConfig: {
        "learning_rate": [0.0, -1.0, NAN, INFINITE],
        "betas": [(2.0, 0.9), (0.9, 1.0), (NAN, 0.5)],
        "weight_decay": [-0.1, NAN],
        "warmup_steps": [-1],
        "start_step": [-1],
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
    MultiScaleQuantizer: {
        "codebook_size": [0, 10**12],
        "code_dim": [0],
        "commitment_weight": [-1.0],
        "commitment_over_scales": ["max"],
        "scales": [(), (0, 1)],
        "num_convolutions": [0],
        "blend": [-0.1, NAN],
        "dropout": [1.1],
    },
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
    PhotosSource: {"window": [0], "train_crops_per_photo": [0], "validation_crops_per_photo": [0], "seed": [-1]},
    SubTokenNoise: {"probability": [1.5, NAN], "per": ["image"], "ramp_steps": [-1], "nearest": [1]},
    AutoregressiveHead: {"depth": [0], "width": [0], "num_heads": [0]},
    MultiMLPHead: {"hidden": [0], "depth": [0]},
    MaskedBitHead: {"digits": ["trits"], "width": [0], "steps": [[], [0, 2]], "temperature": [0.0, INFINITE]},
    FlowMatching: {"times": ["cosine"], "cosine_weight": [-1.0, INFINITE]},
    FlowSampler: {"method": ["rk45"], "steps": [0, 10**9], "shift": [0.0], "guided_channels": [0]},
    CategoricalSampler: {"guidance": [-1.0], "interval": [(0.5, 0.5)], "temperature": [0.0], "top_p": [[0.5, 1.1]]},
    Forcing: {"guidance": [-1.0, NAN]},
    VisionTransformerConfig: {"patch_size": [0], "stochastic_depth": [1.0], "layer_scale": [0.0]},
    FeatureDecoderConfig: {"depth": [0], "num_registers": [-1], "dropout": [1.0]},
}
WORDS = {
    FlowMatching: "flow",
    FlowSampler: "sampler",
    CategoricalSampler: "sampler",
    Forcing: "forcing",
    VisionTransformerConfig: "transformer",
    FeatureDecoderConfig: "feature_decoder",
}
"""Word before the name of a setting in messages; for other classes, the name of the class."""


@pytest.mark.parametrize(
    ("build", "name", "value"),
    [(build, name, value) for build, names in SETTINGS.items() for name, values in names.items() for value in values],
)
def test_a_setting_that_undoes_training_is_refused(build: type, name: str, value: object) -> None:
    with pytest.raises(SettingError, match=f"^{WORDS.get(build, build.__name__)}: {name} (is|holds) ") as refusal:
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


@pytest.mark.parametrize(
    ("value", "found"), [("2", "is '2'"), ([1, None], "holds None"), ([[0.5]], r"holds \[0.5\]"), ({}, "is {}")]
)
def test_other_things_than_numbers_are_refused(value: Any, found: str) -> None:
    with pytest.raises(SettingError, match=f"^x: one {found}; it must be a number, from 0 to 1$"):
        within(0, 1, "x", one=value)


def test_edges_are_allowed() -> None:
    at_least(1, "x", one=1, none=None, several=(1, 2))
    above(0, "x", small=1e-30)
    within(0, 1, "x", zero=0, one=1)
    below_one("x", zero=0.0)
    one_of("x", ("a", None), first="a", none=None)


@pytest.mark.parametrize(
    ("choices", "value", "sentence"),
    [
        (("mean", "sum"), "max", "x: kind is 'max'; it must be mean or sum"),
        (("mean", "sum"), None, "x: kind is None; it must be mean or sum"),
        (("a", "b", "c", None), "d", "x: kind is 'd'; it must be a, b, c or null"),
        (("a",), "", "x: kind is ''; it must be a"),
        ((0, 1), 2, "x: kind is 2; it must be 0 or 1"),
    ],
)
def test_another_choice_is_refused(choices: tuple, value: object, sentence: str) -> None:
    with pytest.raises(SettingError, match=f"^{sentence}$") as refusal:
        one_of("x", choices, kind=value)
    assert (refusal.value.name, refusal.value.value) == ("kind", value)


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(SettingError("depth", 0, "trunk: depth is 0")))
    assert isinstance(error, SettingError)
    assert (error.name, error.value, str(error)) == ("depth", 0, "trunk: depth is 0")
