import copy
import logging
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_modules import OptimizerConfig, TokenizerModule
from polytoken.discriminators import DiffAugment, PatchDiscriminator
from polytoken.errors import RunError, UserError
from polytoken.guard import NonFiniteError
from polytoken.images import resize_displayed
from polytoken.losses import (
    Adversarial,
    Consistency,
    Disentanglement,
    LeCam,
    LossTerm,
    Reconstruction,
    TokenizerObjective,
    TokenizerStep,
)
from polytoken.tokenizers import ConvolutionalTokenizer
from tests.support.host_sync import host_syncs
from tests.support.slow import slow_but
from tests.support.tokenizers import tiny_tokenizer


class Poison(LossTerm):
    """Returns non-finite values at the given calls."""

    def __init__(self, calls: set[int]) -> None:
        super().__init__()
        self.calls, self.count = calls, 0

    def forward(self, step: TokenizerStep) -> torch.Tensor:
        self.count += 1
        return step.decoded.image.mean() * (float("nan") if self.count in self.calls else 0.0)


def build(adversarial_start: int | None = 0, poison: set[int] | None = None, **options) -> TokenizerModule:
    tokenizer = tiny_tokenizer()
    adversarial = None
    if adversarial_start is not None:
        adversarial = Adversarial(PatchDiscriminator(base_channels=8, num_layers=1), start_step=adversarial_start)
    objective = TokenizerObjective(
        reconstruction=Reconstruction(),
        disentanglement=Disentanglement(),
        perceptual=Poison(poison) if poison else None,
        adversarial=adversarial,
    )
    return TokenizerModule(tokenizer, objective, OptimizerConfig(learning_rate=1e-3), **options)


def batches(batch_size: int, count: int = 64) -> DataLoader:
    generator = torch.Generator().manual_seed(5)
    items = [
        {"image": torch.rand(3, 16, 16, generator=generator) * 2 - 1, "label": 0, "index": index}
        for index in range(count)
    ]
    return DataLoader(items, batch_size=batch_size)


def new_trainer(path: Path, steps: int, **options) -> pl.Trainer:
    given = {"num_sanity_val_steps": 0, "accelerator": "cpu", "logger": False, "default_root_dir": path} | options
    off = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(max_steps=steps, **dict.fromkeys(off, False), **{"max_epochs": -1, **given})


def fit(module: TokenizerModule, path: Path, steps: int, batch_size: int = 2, **options) -> pl.Trainer:
    trainer = new_trainer(path, steps, limit_val_batches=0, **options)
    trainer.fit(module, batches(batch_size))
    return trainer


def changed(before: torch.nn.Module, after: torch.nn.Module) -> bool:
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return any(not torch.equal(old, new) for old, new in pairs)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_global_step_counts_batches_and_both_networks_move(tmp_path: Path, precision: str) -> None:
    module = build()
    before = copy.deepcopy(module)
    trainer = fit(module, tmp_path, 3, precision=precision)
    assert trainer.global_step == 3
    assert trainer.fit_loop.epoch_loop.batch_progress.total.completed == 3
    assert changed(before.tokenizer, module.tokenizer)
    assert changed(before.objective.adversarial, module.objective.adversarial)


def test_discriminator_does_not_train_before_its_start(tmp_path: Path) -> None:
    module = build(adversarial_start=3)
    before = copy.deepcopy(module.objective.adversarial)
    fit(module, tmp_path, 3)
    assert not changed(before, module.objective.adversarial)
    module = build(adversarial_start=2)
    fit(module, tmp_path, 3)
    assert changed(before, module.objective.adversarial)


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    """Without losses over the whole batch, two batches of two equal one of four."""
    large, small = build(None), build(None, accumulate_steps=2)
    for module in (large, small):  # Adam would magnify the rounding of gradients near zero
        module.optimizer_config.build = lambda parameters, network: torch.optim.SGD(list(parameters))
    fit(large, tmp_path, 3, batch_size=4)
    trainer = fit(small, tmp_path, 3, batch_size=2)
    assert trainer.global_step == 3
    assert trainer.fit_loop.epoch_loop.batch_progress.total.completed == 6
    for one, other in zip(large.parameters(), small.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-5)


def test_a_validation_keeps_the_gradients_that_accumulate(tmp_path: Path) -> None:
    """Batch 3 of 4 is followed by a validation, and belongs to the second update."""
    whole, validated = build(accumulate_steps=2), build(accumulate_steps=2)
    fit(whole, tmp_path, 2)
    trainer = new_trainer(tmp_path, 2, val_check_interval=3)
    trainer.fit(validated, batches(2), batches(2, count=2))
    assert trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.completed == 1
    torch.testing.assert_close(validated.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_gradient_clipping_bounds_each_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self, closure=None):
        if closure is not None:
            closure()
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    fit(build(gradient_clip=1e-3), tmp_path, 2)
    assert len(norms) == 4
    assert all(norm == pytest.approx(1e-3, rel=1e-3) for norm in norms)


def test_learning_rate_follows_the_schedule(tmp_path: Path) -> None:
    module = build(None)
    module.optimizer_config = OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup_steps=2)
    rates = [module.optimizer_config.learning_rate_at(step, 6) for step in range(6)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447], abs=1e-5)
    trainer = fit(module, tmp_path, 4)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(module.optimizer_config.learning_rate_at(3, 4))


def test_a_late_discriminator_without_an_end_of_its_cosine_is_refused_at_once(tmp_path: Path) -> None:
    cosine = OptimizerConfig(schedule="cosine")
    fit(build(None, discriminator_optimizer=cosine), tmp_path, -1, limit_train_batches=1, max_epochs=1)
    with pytest.raises(UserError, match="a cosine schedule ends at trainer.max_steps"):
        fit(build(9, discriminator_optimizer=cosine), tmp_path, -1, limit_train_batches=1, max_epochs=1)


def test_a_non_finite_step_is_reported_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = build(poison={2})
    with caplog.at_level(logging.WARNING):
        trainer = fit(module, tmp_path, 3)
    assert "step 1: perceptual not finite" in caplog.text
    assert trainer.global_step == 3
    assert trainer.fit_loop.epoch_loop.batch_progress.total.completed == 4
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_too_many_non_finite_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    module = build(poison=set(range(3, 100)), max_nonfinite_steps=2)
    with pytest.raises(NonFiniteError, match="step 2: perceptual not finite.*max_nonfinite_steps=2"):
        fit(module, tmp_path, 20)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_non_finite_gradients_count_in_a_row_as_well(tmp_path: Path) -> None:
    """A finite loss may have an infinite gradient; such steps count as consecutive failures too."""
    module = build(None, max_nonfinite_steps=3)
    module.tokenizer.decoder.conv_out.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = copy.deepcopy([*module.parameters()])
    with pytest.raises(NonFiniteError, match="gradient of the autoencoder"):
        fit(module, tmp_path, 20)
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 2}, "model.accumulate_steps=2"),
        ({"gradient_clip_val": 0.5}, "model.gradient_clip=0.5"),
    ],
)
def test_trainer_flags_are_rejected_with_the_module_arguments(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(build(), tmp_path, 1, **options)


def test_precisions_without_float32_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use 32-true or bf16-mixed"):
        fit(build(), tmp_path, 1, precision="bf16-true")


def test_a_non_finite_image_never_reaches_the_discriminator(tmp_path: Path) -> None:
    """Otherwise batch-norm statistics would stay non-finite."""
    module = build(max_nonfinite_steps=2)
    with torch.no_grad():
        module.tokenizer.decoder.conv_out.bias.fill_(float("nan"))
    before = copy.deepcopy(module.objective.adversarial)
    with pytest.raises(NonFiniteError, match="output of the decoder not finite"):
        fit(module, tmp_path, 5)
    for name, buffer in module.objective.adversarial.named_buffers():
        assert torch.equal(buffer, before.get_buffer(name)), name


def test_adaptive_weight_in_training(tmp_path: Path) -> None:
    module = build()
    module.objective.adversarial.adaptive = True
    before = copy.deepcopy(module)
    fit(module, tmp_path, 2)
    assert changed(before.tokenizer, module.tokenizer)
    assert changed(before.objective.adversarial, module.objective.adversarial)


def test_images_are_compared_at_the_size_of_the_metrics() -> None:
    batch = next(iter(batches(2)))
    plain, reduced = (build(metric_size=size).eval().validation_step(batch, 0) for size in (None, 8))
    assert torch.equal(plain["image"], batch["image"])
    for name in ("image", "reconstruction"):
        assert torch.equal(reduced[name], resize_displayed(plain[name], 8))
    with pytest.raises(UserError, match="metric_size is 0; it must be from 8 to 4,096"):
        build(metric_size=0)


@pytest.mark.parametrize("command", slow_but(("fit",), ("fit", "validate", "test")))
def test_measured_images_are_those_of_the_float32_tokenizer(tmp_path: Path, command: str) -> None:
    """The tokenizer that writes tokens, under the recipes' bf16-mixed and a GPU's TF32."""
    module, batch, measured = build(None), next(iter(batches(2))), []
    expected = copy.deepcopy(module).eval()(batch["image"])

    class Keep(pl.Callback):
        def on_validation_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: dict, *_) -> None:
            measured.append(outputs)

        on_test_batch_end = on_validation_batch_end

    def look(*_: object) -> None:
        measured.append(torch.get_float32_matmul_precision())

    module.tokenizer.decoder.conv_out.register_forward_pre_hook(look)
    # the sanity check of a fit is of the first weights
    trainer = new_trainer(tmp_path, 1, precision="bf16-mixed", num_sanity_val_steps=1, callbacks=[Keep()])
    torch.set_float32_matmul_precision("high")
    try:
        loaders = (batches(2), batches(2)) if command == "fit" else (batches(2),)
        getattr(trainer, command)(module, *loaders)
    finally:
        torch.set_float32_matmul_precision("highest")
    precision, outputs = measured[:2]
    assert precision == "highest"
    assert torch.equal(outputs["reconstruction"], expected[0].image)
    assert torch.equal(outputs["encoding"].codes, expected[1].codes)


def test_reconstructions_that_are_not_finite_are_not_measured() -> None:
    """In 8 bits they would pass for black images."""
    module = build().eval()
    with torch.no_grad():
        module.tokenizer.last_layer.fill_(float("nan"))
    with pytest.raises(RunError, match="reconstructions are not finite, so they are not measured"):
        module.validation_step(next(iter(batches(2))), 0)


def test_a_rejected_step_leaves_no_trace(tmp_path: Path) -> None:
    """Weights, Adam's moments and batch-norm statistics equal those of a run without the bad batch."""
    module = build(poison={2})
    batch_of = [*batches(2, count=8)]
    bad = [batch_of[0], batch_of[3], *batch_of[1:3]]
    states = []
    for network, loader in ((module, bad), (build(poison={10**6}), batch_of[:3])):
        trainer = pl.Trainer(
            max_steps=3,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            accelerator="cpu",
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(network, DataLoader(loader, batch_size=None))
        moments = [value for optimizer in trainer.optimizers for value in optimizer.state.values()]
        states.append((network.state_dict(), moments))
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_training_step_reads_the_device_once(tmp_path: Path, accumulate_steps: int) -> None:
    """With both networks, all adversarial options; without optimizers (Adam counts on the host)."""
    module = build(accumulate_steps=accumulate_steps)
    block = module.objective.adversarial
    block.adaptive, block.augmentation = True, DiffAugment()
    block.lecam, block.consistency = LeCam(), Consistency()
    counts = []

    class Count(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            for optimizer in trainer.optimizers:
                optimizer.step = lambda closure=None: closure and closure()
            step = module.training_step

            def counted(*arguments: object) -> object:
                with host_syncs() as found:
                    result = step(*arguments)
                counts.append(dict(found))
                return result

            module.training_step = counted

    fit(module, tmp_path, 2, callbacks=[Count()])
    assert len(counts) == 2 * accumulate_steps
    for found in counts[:accumulate_steps]:
        found.pop("tensor", None)  # Lightning's sums of logged values, made at their first logging
    assert all(sum(found.values()) == 1 for found in counts), counts


def test_training_starts_from_given_weights_and_resumes_from_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str | None] = []
    monkeypatch.setattr(ConvolutionalTokenizer, "start", lambda _: calls.append("start"))
    module = build()
    trainer = fit(module, tmp_path, 1)
    assert calls == ["start"]
    trainer.validate(module, batches(2), verbose=False)
    resumed = build()
    resumed.resumes_from = "last.ckpt"
    fit(resumed, tmp_path, 1)
    assert calls == ["start"]
