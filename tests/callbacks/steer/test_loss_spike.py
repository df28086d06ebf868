"""A spike of the loss is reported once, the checkpoint before it is kept, and clipping bounds its update."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from callbacks.checkpoint.last_checkpoint import LastCheckpoint
from callbacks.steer.loss_spike import LossSpike
from polytoken.losses import LossTerm, TokenizerStep
from tests.lightning_modules.test_tokenizer import batches, build

SPIKE = 25  # the call, from 1


class Jump(LossTerm):
    """A loss that is a million times larger in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, step: TokenizerStep) -> torch.Tensor:
        self.count += 1
        return step.decoded.image.square().mean() * (1e6 if self.count == SPIKE else 1.0)


class Moves(pl.Callback):
    """Distance that each update moves the weights."""

    def __init__(self) -> None:
        self.far: list[float] = []
        self._before: torch.Tensor | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        now = torch.cat([parameter.detach().flatten() for parameter in module.tokenizer.parameters()])
        if self._before is not None:
            self.far.append(float((now - self._before).norm()))
        self._before = now


def test_a_spike_is_reported_and_its_last_checkpoint_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, moves, spikes = build(None, poison={10**6}), Moves(), LossSpike()
    module.objective.terms["perceptual"] = Jump()
    trainer = pl.Trainer(
        max_steps=30,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        limit_val_batches=0,
        default_root_dir=tmp_path,
        callbacks=[spikes, moves, LastCheckpoint(10)],
    )
    trainer.fit(module, batches(2))
    kept = tmp_path / "checkpoints/step_20.ckpt"
    assert caplog.text.count("and its median was") == 1
    assert f"step {SPIKE - 1}: train/loss is " in caplog.text
    assert f"the checkpoint before it is kept as {kept}" in caplog.text
    assert sorted(path.name for path in kept.parent.iterdir()) == ["last.ckpt", "previous.ckpt", "step_20.ckpt"]
    assert torch.load(kept, weights_only=True)["global_step"] == 20
    usual = sorted(moves.far)[len(moves.far) // 2]
    assert max(moves.far) < 10 * usual, "clipping bounds the update of a spike"
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert len(spikes.state_dict()["values"]) == 30 - SPIKE + 1


def test_a_spike_without_an_earlier_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spikes = LossSpike()
    spikes.load_state_dict({"values": [1.0, 1.1] * 10})
    trainer = type("T", (), {"callback_metrics": {}, "is_global_zero": True, "global_step": 21, "callbacks": []})()
    for step, value in enumerate([1.15, float("nan"), 5.0, 5.0], start=21):
        trainer.global_step, trainer.callback_metrics = step, {"train/loss": torch.tensor(value)}
        spikes.on_train_batch_end(trainer)
        spikes.on_train_batch_end(trainer)  # a batch that only accumulates
    assert caplog.text.count("no checkpoint was written before it") == 1 and "step 22" in caplog.text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"deviations": 0}, "deviations is 0; it must be above 0"),
        ({"window": 5}, "window is 5; it must be at least 20"),
    ],
)
def test_invalid_settings(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"LossSpike: {sentence}"):
        LossSpike(**options)
