from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from callbacks import EMA
from polytoken.errors import UserError


class Toy(pl.LightningModule):
    """A linear layer with an integer buffer that counts batches."""

    def __init__(self, accumulate: int = 1) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.head = nn.Linear(1, 1)  # not trained
        self.net.register_buffer("seen", torch.tensor(0))
        self.history: list[torch.Tensor] = []
        self.judged: list[torch.Tensor] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.net.seen += 1
        return self.net(batch).square().mean()

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        self.history.append(self.net.weight.detach().clone())

    def validation_step(self, batch: torch.Tensor) -> None:
        self.judged.append(self.net.weight.detach().clone())

    test_step = validation_step


def fit(path: Path, ema: EMA, steps: int, **options) -> tuple[Toy, pl.Trainer]:
    torch.manual_seed(0)
    module = Toy()
    ckpt_path = options.pop("ckpt_path", None)
    loader = torch.utils.data.DataLoader(torch.randn(64, 2, generator=torch.Generator().manual_seed(1)), batch_size=4)
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=[ema],
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=path,
        **options,
    )
    trainer.fit(module, loader, loader if options else None, ckpt_path=ckpt_path, weights_only=True)
    return module, trainer


def test_average_follows_its_definition(tmp_path: Path) -> None:
    ema = EMA(["net"], decay=0.5, warmup=True)
    torch.manual_seed(0)
    expected = Toy().net.weight.detach().clone()
    module, _ = fit(tmp_path, ema, 6)
    weights = [*module.history[1:], module.net.weight.detach()]
    for update, weight in enumerate(weights, start=1):
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * weight
    assert ema.updates == 6
    assert torch.allclose(ema._average["net.weight"], expected, atol=1e-6)
    assert ema._average["net.seen"].item() == 6, "integer buffers are copied"
    assert ema._average["net.seen"].dtype == torch.int64


def test_updates_count_optimizer_steps_not_batches(tmp_path: Path) -> None:
    ema = EMA(["net"])
    fit(tmp_path, ema, 3, accumulate_grad_batches=4)
    assert ema.updates == 3


def test_validation_uses_the_average_and_training_does_not(tmp_path: Path) -> None:
    ema = EMA(["net"], decay=0.9)
    module, trainer = fit(tmp_path, ema, 4, val_check_interval=4, limit_val_batches=1)
    assert torch.equal(module.judged[-1], ema._average["net.weight"])
    assert not torch.equal(module.net.weight, ema._average["net.weight"])
    module.judged.clear()
    loader = torch.utils.data.DataLoader(torch.zeros(4, 2), batch_size=4)
    trainer.validate(module, loader, verbose=False)
    assert torch.equal(module.judged[-1], ema._average["net.weight"])


def test_the_checkpoint_contains_the_average(tmp_path: Path) -> None:
    ema = EMA(["net"], decay=0.9)
    _, trainer = fit(tmp_path, ema, 4)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = EMA(["net"], decay=0.9)
    fit(tmp_path, resumed, 4, ckpt_path=tmp_path / "last.ckpt", limit_val_batches=0)
    assert resumed.updates == 4
    assert torch.equal(resumed._average["net.weight"], ema._average["net.weight"])


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_averages_of_other_weights_are_refused(command: str, tmp_path: Path) -> None:
    _, trainer = fit(tmp_path, EMA(["net"]), 1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer = pl.Trainer(
        callbacks=[EMA(["head"])], accelerator="cpu", logger=False, max_steps=2, default_root_dir=tmp_path
    )
    loader = torch.utils.data.DataLoader(torch.zeros(4, 2))
    with pytest.raises(UserError, match=r"than its modules \['head'\]: \['head.bias', 'head.weight', 'net.bias'\]"):
        getattr(trainer, command)(Toy(), loader, ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def test_an_unknown_sub_module_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Toy has no sub-module 'netz'"):
        fit(tmp_path, EMA(["netz"]), 1)
