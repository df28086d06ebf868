"""Options and commands under the names of other code, for the message about an unknown one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from commands.cli.places import nearest

NAMES = {  # lower case, with _ for -
    "accumulate": "trainer.accumulate_grad_batches",
    "batch": "data.batch_size",
    "batch_size": "data.batch_size",
    "cfg_scale": "model.sampler.guidance",
    "ch_mult": "model.tokenizer.channel_multipliers",
    "checkpoint": "ckpt_path",
    "ckpt": "ckpt_path",
    "clip_grad": "trainer.gradient_clip_val",
    "code_path": "data.store",
    "codebook_embed_dim": "model.tokenizer.quantizer.code_dim",
    "codebook_size": "model.tokenizer.quantizer.codebook_size",
    "data_path": "data.source.root",
    "disc_start": "model.objective.adversarial.start_step",
    "disc_weight": "model.objective.adversarial.weight",
    "embed_dim": "model.tokenizer.quantizer.code_dim",
    "epochs": "trainer.max_steps",
    "global_batch_size": "data.batch_size",
    "gpus": "trainer.devices",
    "grad_clip": "trainer.gradient_clip_val",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "guidance_scale": "model.sampler.guidance",
    "image_size": "data.image_size",
    "init_weight": "model.init_from",
    "iterations": "trainer.max_steps",
    "learning_rate": "model.optimizer.learning_rate",
    "lr": "model.optimizer.learning_rate",
    "max_grad_norm": "trainer.gradient_clip_val",
    "max_steps": "trainer.max_steps",
    "max_train_steps": "trainer.max_steps",
    "mixed_precision": "trainer.precision",
    "n_embed": "model.tokenizer.quantizer.codebook_size",
    "num_codebook": "model.tokenizer.quantizer.num_branches",
    "num_codebooks": "model.tokenizer.quantizer.num_branches",
    "num_gpus": "trainer.devices",
    "num_workers": "data.num_workers",
    "output_dir": "run.root",
    "perceptual_weight": "model.objective.perceptual.weight",
    "precision": "trainer.precision",
    "resolution": "data.image_size",
    "resume": "ckpt_path",
    "resume_from_checkpoint": "ckpt_path",
    "seed": "seed_everything",
    "steps": "trainer.max_steps",
    "strategy": "trainer.strategy",
    "vq_ckpt": "model.init_from",
    "wd": "model.optimizer.weight_decay",
    "weight_decay": "model.optimizer.weight_decay",
    "workers": "data.num_workers",
    "z_channels": "model.tokenizer.latent_channels",
}

# of Lightning's trainer, its value that changes nothing, and the name in a model that steps its optimizers itself
STEPPING = {"accumulate_grad_batches": (1, "accumulate_steps"), "gradient_clip_val": (None, "gradient_clip")}
COMMANDS = {
    "eval": "validate",
    "evaluate": "validate",
    "generate": "predict",
    "infer": "predict",
    "pretrain": "fit",
    "sample": "predict",
    "train": "fit",
}


def command(name: str) -> str | None:
    """Our command that others call by this name, or the one most like it."""
    return COMMANDS.get(name.lower()) or nearest(name, set(COMMANDS.values()) | {"test"})


def of_the_field(name: str, given: Collection[tuple[str, ...]] = ()) -> str | None:
    """Our option that others call by this name; None if none is known.

    Args:
        name: option of other code, with or without what stands before its last dot.
        given: keys of the configuration files; the only one that ends like our option is preferred to the usual place.
    """
    names = {**NAMES, **{ours: f"trainer.{theirs}" for theirs, (_, ours) in STEPPING.items()}}
    ours = names.get(name.lower().replace("-", "_"))
    if ours is None:
        return None
    last = ours.rpartition(".")[2]
    found = {".".join(key for key in keys if key != "init_args") for keys in given if keys[-1] == last}
    return f"--{found.pop() if len(found) == 1 else ours}"


def in_the_model(trainer: Any, model: Any) -> list[str]:
    """Move accumulation and clipping from the trainer to a model that steps its optimizers itself.

    Args:
        trainer: Section of the configuration; a setting that was moved has its neutral value afterwards.
        model: `init_args` of the model; one without options of these names is left alone.

    Returns:
        A sentence for each setting that was moved.
    """
    notes = []
    for name, (neutral, ours) in STEPPING.items():
        if (value := trainer.get(name)) != neutral and ours in model:
            trainer[name], model[ours] = neutral, value
            notes.append(f"trainer.{name} is model.{ours} {value} here: a tokenizer steps its optimizers itself")
    return notes
