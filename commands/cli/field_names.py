"""Options under the names that other code bases of the field give them, for the message about an unknown option."""

from __future__ import annotations

NAMES = {  # lower case, with _ for -
    "accumulate": "model.accumulate_steps",
    "batch": "data.batch_size",
    "batch_size": "data.batch_size",
    "cfg_scale": "model.sampler.guidance",
    "ch_mult": "model.tokenizer.channel_multipliers",
    "checkpoint": "ckpt_path",
    "ckpt": "ckpt_path",
    "clip_grad": "model.gradient_clip",
    "code_path": "data.store",
    "codebook_embed_dim": "model.tokenizer.quantizer.code_dim",
    "codebook_size": "model.tokenizer.quantizer.codebook_size",
    "data_path": "data.source.root",
    "disc_start": "model.objective.adversarial.start_step",
    "disc_weight": "model.objective.adversarial.weight",
    "embed_dim": "model.tokenizer.quantizer.code_dim",
    "epochs": "trainer.max_epochs",
    "global_batch_size": "data.batch_size",
    "gpus": "trainer.devices",
    "grad_clip": "model.gradient_clip",
    "gradient_accumulation_steps": "model.accumulate_steps",
    "guidance_scale": "model.sampler.guidance",
    "image_size": "data.image_size",
    "init_weight": "model.init_from",
    "iterations": "trainer.max_steps",
    "learning_rate": "model.optimizer.learning_rate",
    "lr": "model.optimizer.learning_rate",
    "max_grad_norm": "model.gradient_clip",
    "max_steps": "trainer.max_steps",
    "max_train_steps": "trainer.max_steps",
    "mixed_precision": "trainer.precision",
    "n_embed": "model.tokenizer.quantizer.codebook_size",
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


def of_the_field(name: str) -> str | None:
    """Our option that others call by this name; None if none is known."""
    ours = NAMES.get(name.lower().replace("-", "_"))
    return None if ours is None else f"--{ours}"
