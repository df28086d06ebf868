"""Base of LightningModules that must know early which checkpoint a command restores."""

from __future__ import annotations

import lightning.pytorch as pl


class ResumingModule(pl.LightningModule):
    """LightningModule that reads ``resumes_from`` in configure_model.

    ``resumes_from`` is the checkpoint that a fit resumes from, or that a validation measures; None for a run that
    starts. `cli.py` sets it before: Lightning exposes ``trainer.ckpt_path`` only after configure_model.
    """

    resumes_from: str | None = None
