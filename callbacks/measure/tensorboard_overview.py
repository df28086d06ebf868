"""Layout of TensorBoard's Custom Scalars, and the hyper-parameters of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from artifacts import yaml_files
from callbacks.measure.plots import tensorboard_writers
from polytoken.errors import MissingFileError, UserError

# group, chart, and regular expressions of the names of its curves
LAYOUT = {
    "reconstruct": {
        "PSNR, dB": [r"val/psnr(_raw|_painted)?$"],
        "SSIM": [r"val/ssim(_raw)?$"],
        "distances to the originals": [r"val/(rfd|rfid|rsfid|lpips)(_raw)?/"],
        "terms on images and features": [
            r"train/(reconstruction|perceptual|adversarial|discriminator|disentanglement|alignment_\w+)$"
        ],
    },
    "codes": {
        "share of the codes in use": [r"(train|val)/usage/"],
        "perplexity": [r"val/perplexity/"],
        "terms on codes": [r"train/(codebook|commitment|entropy)$"],
        "latents of scalar quantization": [r"val/(ks|rmse_uniform|entropy_ratio|bins_hit)$"],
    },
    "generate": {
        "nats a sub-code": [r"(train|val)/nll(/\d+)?$"],
        "upper bound of the nats a sub-code": [r"(train|val)/nll_bound(/\d+)?$"],
        "loss a sub-code, no likelihood": [r"(train|val)/loss/"],
        "bits an image": [r"val/bits_per_image(_bound)?$"],
        "share of noisy sub-tokens": [r"train/noise_rate$"],
    },
    "speed": {
        "images a second": [r"speed/images_per_second$"],
        "share of the time without a batch": [r"speed/data_wait$"],
        "peak memory, GB": [r"speed/memory_gb$"],
        "learning rate": [r"lr-"],
    },
    "caption": {
        "CIDEr-D, %": [r"val/cider_d$"],
        "BLEU, %": [r"val/bleu_\d$"],
    },
}
# groups of each kind of module; curves of speed are of all
GROUPS = {
    "TokenizerModule": ("reconstruct", "codes"),
    "GeneratorModule": ("generate",),
    "CaptioningModule": ("caption",),
}
MEASURED_BY = {  # charts that only a callback fills
    "PSNR, dB": "ReconstructionMetrics",
    "SSIM": "ReconstructionMetrics",
    "share of the codes in use": "CodebookUsage",
    "perplexity": "CodebookUsage",
    "latents of scalar quantization": "Uniformity",
}
SETTINGS = ("max_steps", "precision")  # settings of the trainer
# places and seeds of the data's order are no settings that one compares runs by
NOT_COMPARED = {"output", "root", "store", "init_from", "tokenizer_run", "generator_run", "data.seed"}


class TensorBoardOverview(Callback):
    """Writes the layout of the tab Custom Scalars and the settings of the tab HParams into the events of a fit.

    HParams shows the last value of each curve, which the validation at the end of a fit logs. The settings are those of
    `config.yaml` in the run's directory; without that file the tab is empty.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both at the start, so that they are shown during the run."""
        if not trainer.is_global_zero:
            return
        from torch.utils.tensorboard.summary import hparams

        file = Path(trainer.default_root_dir) / "config.yaml"
        _, start, _ = hparams(_recorded(file), {})
        for writer in tensorboard_writers(trainer):
            writer.add_custom_scalars(layout(trainer, pl_module))
            writer.file_writer.add_summary(start)
            writer.flush()


def layout(trainer: Trainer, pl_module: LightningModule) -> dict[str, dict[str, list[Any]]]:
    """Charts of a fit by group: those of its kind of module, and of its callbacks."""
    kinds = [kind.__name__ for kind in type(pl_module).__mro__]
    groups = [group for kind in kinds for group in GROUPS.get(kind, ())] + ["speed"]
    callbacks = {type(callback).__name__ for callback in trainer.callbacks}
    return {
        group: {
            chart: ["Multiline", names]
            for chart, names in LAYOUT[group].items()
            if MEASURED_BY.get(chart) in (None, *callbacks)
        }
        for group in groups
    }


def _recorded(file: Path) -> dict[str, bool | float | str]:
    """Settings in a run's configuration; none if it is missing, or broken, which does not stop a run."""
    try:
        return settings(yaml_files.read(file) or {})
    except MissingFileError:
        return {}
    except (UserError, AttributeError) as error:  # AttributeError: a section is no mapping
        rank_zero_warn(f"{file} is broken, so that TensorBoard shows no settings: {error}")
        return {}


def settings(config: dict[str, Any]) -> dict[str, bool | float | str]:
    """Stage, seed, steps and all non-null settings of model and data, by name: `model.tokenizer.image_size`.

    The kind of stage, such as `teacher` or `tokenizer`, filters the table; places of files are left out of it.
    """
    trainer = config.get("trainer") or {}
    stage = str((config.get("run") or {}).get("stage") or "").partition("/")[0]
    chosen = {
        "stage": stage or None,
        "seed": config.get("seed_everything"),
        "trainer": {name: trainer.get(name) for name in SETTINGS},
        "model": config.get("model"),
        "data": config.get("data"),
    }
    found = dict(_flat(chosen))
    return {name: value for name, value in found.items() if not NOT_COMPARED & {name, name.rpartition(".")[2]}}


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | float | str]]:
    for key, value in tree.items():
        name = prefix if key in ("class_path", "init_args") else f"{prefix}.{key}".lstrip(".")
        if key == "class_path":
            yield name, str(value).rpartition(".")[2]
        elif isinstance(value, dict):
            yield from _flat(value, name)
        elif isinstance(value, bool | int | float | str):
            yield name, value
        elif value is not None:
            yield name, str(value)
