"""Two ranks with batches of b train a tokenizer like one rank with batches of 2b; unsupported strategies raise."""

from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch.utils.data import DataLoader

from lightning_modules import OptimizerConfig, TokenizerModule
from polytoken.discriminators import PatchDiscriminator
from polytoken.losses import Adversarial, Disentanglement, FeatureAlignment, Reconstruction, TokenizerObjective
from polytoken.losses.adversarial import adaptive_weight
from polytoken.quantizers.vector import entropy_gap
from polytoken.teachers import Teacher
from polytoken.teachers.stand_in import SmallVisionTransformer
from tests.support.conditioned import conditioned
from tests.support.ranks import run_on_ranks
from tests.support.tokenizers import tiny_tokenizer

DDP = "ddp_find_unused_parameters_true"


def build(gather: bool, teacher: str) -> TokenizerModule:
    """All networks, and all terms over the whole batch; no batch norm in the discriminator."""
    tokenizer = tiny_tokenizer()
    for codebook in tokenizer.quantizer.branches:
        codebook.entropy_weight, codebook.entropy_temperature, codebook.entropy_gather = 1.0, 1.0, gather
    objective = TokenizerObjective(
        reconstruction=Reconstruction(),
        disentanglement=Disentanglement(),
        alignment_high=FeatureAlignment("high", subspace=1, temperature=0.1, gather=gather),
        adversarial=Adversarial(PatchDiscriminator(base_channels=8, num_layers=0), start_step=1, adaptive=True),
        teachers={"high": Teacher("stand_in", teacher)},
    )
    torch.manual_seed(0)
    return TokenizerModule(tokenizer, objective, OptimizerConfig(learning_rate=1.0))


def trained(rank: int, ranks: int, gather: bool, teacher: str) -> dict[str, torch.Tensor]:
    """All weights after one step of the autoencoder alone and two of both networks, on global batches of four."""
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(12, 3, 16, 16, generator=generator) * 2 - 1
    size = 4 // ranks
    mine = [step * 4 + rank * size + row for step in range(3) for row in range(size)]
    module = build(gather, teacher)
    trainer = pl.Trainer(
        max_steps=3,
        accelerator="cpu",
        devices=ranks,
        strategy=DDP if ranks > 1 else "auto",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=".",
    )
    with conditioned():
        trainer.fit(module, DataLoader([{"image": images[index]} for index in mine], batch_size=size))
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def two_ranks(rank: int) -> dict[str, object]:
    result: dict[str, object] = {
        name: trained(rank, 2, gather, "high.safetensors") for name, gather in (("gather", True), ("local", False))
    }
    result["entropy"] = entropy_of(ROWS[rank * 3 : rank * 3 + 3], gather=True)
    try:
        contrary = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
        contrary.fit(build(True, "high.safetensors"), DataLoader([{"image": torch.zeros(3, 16, 16)}]))
    except ValueError as error:
        result["plain ddp"] = str(error)
    return result


ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def entropy_of(rows: torch.Tensor, gather: bool) -> dict[str, torch.Tensor]:
    codebook = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    value = entropy_gap(rows, codebook, 0.5, 10, gather)
    value.backward()
    return {"value": value.detach(), "gradient": codebook.grad}


@pytest.mark.cluster
def test_two_ranks_equal_one_rank_with_twice_the_batch(tmp_path: Path) -> None:
    SmallVisionTransformer(16, 4, width=16, depth=1, num_heads=2).save(tmp_path / "high.safetensors")
    alone = trained(0, 1, True, str(tmp_path / "high.safetensors"))
    start = build(True, str(tmp_path / "high.safetensors")).state_dict()
    ranks = run_on_ranks(two_ranks, tmp_path)
    first, second = (found["local"] for found in ranks)
    assert all(torch.equal(first[name], second[name]) for name in first), "ranks stay together"
    parts = ("encoder", "decoder", "projection", "quantizer")
    for network in (*(f"tokenizer.{part}" for part in parts), "terms", "adversarial"):
        names = [name for name in alone if network in name]

        def distance(one: dict, other: dict, names: list[str] = names) -> float:
            return max(float((one[name] - other[name]).abs().max()) for name in names)

        moved = distance(alone, start)
        assert moved > 1e-4, network
        for found in ranks:
            assert distance(found["gather"], alone) < 1e-3 * moved + 2e-7, network
        if network in ("tokenizer.projection", "tokenizer.quantizer", "terms"):
            assert distance(first, alone) > 0.02 * moved, f"{network}: locally, other terms are minimised"

    together = entropy_of(ROWS, gather=False)
    for name, expected in together.items():
        mean = torch.stack([found["entropy"][name] for found in ranks]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(entropy_of(ROWS[:3], gather=False)["value"], together["value"], rtol=1e-3)
    assert all("use ddp_find_unused_parameters_true" in found["plain ddp"] for found in ranks)


def test_unsupported_strategies_are_rejected() -> None:
    def check(strategy: Strategy, fn: str = "fit") -> None:
        fitting = {"accumulate_grad_batches": 1, "gradient_clip_val": None, "precision": "32-true"}
        TokenizerModule.check_trainer(SimpleNamespace(**fitting, strategy=strategy, state=SimpleNamespace(fn=fn)))

    for strategy, named in ((FSDPStrategy(), "FSDP version 1"), (ModelParallelStrategy(), "FSDP version 2")):
        with pytest.raises(ValueError, match=f"{named}.*use ddp_find_unused_parameters_true"):
            check(strategy)
    with pytest.raises(ValueError, match="take turns: use ddp_find_unused_parameters_true"):
        check(DDPStrategy())
    check(DDPStrategy(), "validate")
    check(DDPStrategy(find_unused_parameters=True))


def test_only_batch_norm_has_buffers(tmp_path: Path) -> None:
    """DDP overwrites buffers with rank 0's at each forward pass, so only unread ones (batch norm) may exist."""
    SmallVisionTransformer(16, 4, width=16, depth=1, num_heads=2).save(tmp_path / "high.safetensors")
    module = build(True, str(tmp_path / "high.safetensors"))
    module.objective.adversarial = Adversarial(PatchDiscriminator(base_channels=8, num_layers=1))
    names = {name.rsplit(".", 1)[1] for name, _ in module.named_buffers()}
    assert names == {"running_mean", "running_var", "num_batches_tracked"}


def test_the_adaptive_weight_uses_gradients_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    last = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    losses = (last.square().sum(), 3 * last.sum())
    expected = adaptive_weight(*losses, last)
    assert expected == pytest.approx(20**0.5 / (18**0.5 + 1e-4))
    other = torch.tensor([[-2.0, -4.0], [3.0, 3.0]])  # the gradients of another rank, opposite in the first
    monkeypatch.setattr("polytoken.losses.adversarial.mean_over_ranks", lambda own: (own + other) / 2)
    assert adaptive_weight(*losses, last) == 0
