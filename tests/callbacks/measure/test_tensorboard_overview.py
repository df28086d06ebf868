"""The events of a fit, read by TensorBoard's own readers."""

import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

import callbacks
import lightning_modules
from callbacks import CodebookUsage, MetricsFile, ReconstructionGrid, ReconstructionMetrics
from callbacks.measure.tensorboard_overview import GROUPS, LAYOUT, MEASURED_BY, TensorBoardOverview, settings
from tests.support.tokenizers import tiny_tokenizer
from tests.support.validation import Images, module_of, quiet_trainer

CONFIG = """
seed_everything: 7
trainer: {max_steps: 2, precision: 32-true, devices: 1}
model:
  class_path: lightning_modules.TokenizerModule
  init_args:
    tokenizer: {class_path: a.B, init_args: {codebook_size: 64, channels: [1, 2]}}
    objective: {perceptual: null}
data: {class_path: c.D, init_args: {batch_size: 4, horizontal_flip: true}}
"""


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    directory = tmp_path_factory.mktemp("run")
    (directory / "config.yaml").write_text(CONFIG)
    watching = [TensorBoardOverview(), ReconstructionMetrics(), CodebookUsage(window=1)]
    logger = TensorBoardLogger(directory, name="", version="")
    trainer = quiet_trainer(directory, watching, logger=logger, max_steps=2, log_every_n_steps=1)
    module = module_of(tiny_tokenizer())
    trainer.fit(module, Images())
    trainer.validate(module, Images(), verbose=False)
    logger.experiment.close()
    return EventAccumulator(str(directory)).Reload()


def test_the_layout_groups_the_logged_curves(events: EventAccumulator) -> None:
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["reconstruct", "codes", "speed"]
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    logged = events.Tags()["scalars"]
    shown = {title: {tag for tag in logged for name in names if re.match(name, tag)} for title, names in charts.items()}
    assert shown["PSNR, dB"] == {"val/psnr", "val/psnr_raw"}
    assert shown["terms on images and features"] == {"train/reconstruction"}
    assert shown["share of the codes in use"] >= {"train/usage/0", "train/usage/1", "val/usage/0", "val/usage/joint"}
    assert shown["terms on codes"] and "latents of scalar quantization" not in shown  # no callbacks.Uniformity
    assert {group for groups in GROUPS.values() for group in groups} | {"speed"} == set(LAYOUT)
    for kind in GROUPS:
        assert hasattr(lightning_modules, kind)
    for chart, callback in MEASURED_BY.items():
        assert hasattr(callbacks, callback) and any(chart in charts for charts in LAYOUT.values())


def test_hyperparameters_and_final_metrics_are_those_of_one_run(events: EventAccumulator) -> None:
    content = events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    found = parse_session_start_info_plugin_data(content).hparams
    assert found["seed"].number_value == 7 and found["model.tokenizer.codebook_size"].number_value == 64
    assert found["model.tokenizer"].string_value == "B"
    assert events.Scalars("val/psnr")  # HParams finds the metrics in the same directory


def test_settings_have_their_configuration_names() -> None:
    config = {"model": {"class_path": "a.B", "init_args": {"x": None, "y": {"z": [1, 2]}}}, "trainer": {"devices": 1}}
    assert settings(config) == {"model": "B", "model.y.z": "[1, 2]"}
    assert settings({}) == {}
    places = {"init_args": {"output": "runs/x.safetensors", "width": 3}}
    data = {"init_args": {"seed": 2000, "source": {"init_args": {"root": "/data", "size": 32}}}}
    teacher = {"run": {"stage": "teacher/mid"}, "model": places, "data": data}
    assert settings(teacher) == {"stage": "teacher", "model.width": 3, "data.source.size": 32}


def test_every_chart_matches_a_known_name() -> None:
    """Known names are those of docs/callbacks.md and the modules."""
    known = """val/psnr val/ssim val/rfd/judge train/perceptual train/usage/0 val/perplexity/0 train/entropy val/ks
        train/nll/0 val/nll val/nll_bound val/bits_per_image train/loss/0 train/noise_rate speed/images_per_second
        speed/data_wait speed/memory_gb lr-AdamW/autoencoder val/cider_d
        val/bleu_4""".split()
    for charts in LAYOUT.values():
        for title, names in charts.items():
            assert any(re.match(name, tag) for name in names for tag in known), title


def test_a_later_validation_keeps_the_curves_of_the_fit(tmp_path: Path) -> None:
    """TensorBoard drops points behind the step of a new file of events, and W&B new points before the last one."""

    def trainer(**arguments: object) -> pl.Trainer:
        watching = [MetricsFile(), ReconstructionMetrics(), ReconstructionGrid()]
        return quiet_trainer(tmp_path, watching, logger=TensorBoardLogger(tmp_path, name="", version=""), **arguments)

    first = trainer(max_steps=4, check_val_every_n_epoch=None, val_check_interval=2, num_sanity_val_steps=0)
    first.fit(module_of(tiny_tokenizer()), Images())
    first.save_checkpoint(tmp_path / "last.ckpt")
    first.loggers[0].finalize("success")
    later = trainer()
    later.validate(module_of(tiny_tokenizer()), Images(), ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    later.loggers[0].finalize("success")
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("val/psnr")] == [1, 3, 4]  # Lightning counts from 0 in a fit
    assert [event.step for event in events.Images("reconstructions")] == [2, 4, 4]
