"""Training of tokenizers: one update of the autoencoder and one of its discriminator for each batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from artifacts.continuation import continue_from
from datamodules.images import check_image_size
from lightning_modules.resuming import ResumingModule
from polytoken.blocks import NormSwish
from polytoken.compilation import compile_modules
from polytoken.errors import RunError, UserError
from polytoken.fingerprint import FROZEN, OBJECTIVE_FROZEN, check_frozen
from polytoken.guard import NonFiniteGuard
from polytoken.images import resize_displayed
from polytoken.loading import INIT_FROM
from polytoken.losses import TokenizerObjective, TokenizerStep
from polytoken.optimization import OptimizerConfig, gradient_norm
from polytoken.precision import full_precision
from polytoken.ranges import above, at_least, within
from polytoken.specs import Decoded, Encoding
from polytoken.tokenizers import Tokenizer

PRECISIONS = ("32-true", "bf16-mixed")  # fp16 needs a gradient scaler, which two optimizers cannot share


class TokenizerModule(ResumingModule):
    """Tokenizer, objective and their two optimizers, by manual optimization.

    ``global_step`` counts updates of the autoencoder: the discriminator's optimizer is stepped raw, past Lightning's
    counter. A step with a non-finite loss or gradient changes no weight, moment or buffer, and is reported.

    Args:
        tokenizer: the network.
        objective: the named loss terms and the adversarial block.
        optimizer: optimizer of the autoencoder.
        discriminator_optimizer: optimizer of the discriminator; None copies ``optimizer``.
        gradient_clip: largest gradient norm of each network, clipped separately; None disables clipping.
        accumulate_steps: batches an update; curves are drawn over batches, as Lightning counts in manual optimization.
        max_nonfinite_steps: consecutive non-finite steps tolerated before raising.
        init_from: run or checkpoint of a tokenizer whose weights a new run starts from, averaged if it kept averages.
            Its discriminator and the predictors of its terms are copied if all their shapes are equal. Step, optimizers
            and averages start from scratch. A resumed run does not read it.
        metric_size: pixels a side at which callbacks compare images and reconstructions, both in 8 bits and resized
            once (bicubic, antialiased); None compares them as they are.
        compile: run the tokenizer's ``blocks`` under ``torch.compile`` in training: encoder and decoder. The first
            steps take minutes. Without a compiler a warning says so, and they run as they are.
        recompute_norms: compute norm and swish of convolutional blocks a second time in backward, which saves a third
            of the memory of encoder and decoder; off, a step is faster. Compiled blocks do not read it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        objective: TokenizerObjective,
        optimizer: OptimizerConfig | None = None,
        discriminator_optimizer: OptimizerConfig | None = None,
        gradient_clip: float | None = 1.0,
        accumulate_steps: int = 1,
        max_nonfinite_steps: int = 10,
        metric_size: int | None = None,
        init_from: str | None = None,
        compile: bool = False,  # noqa: A002
        recompute_norms: bool = True,
    ) -> None:
        super().__init__()
        above(0, self, gradient_clip=gradient_clip)
        at_least(1, self, accumulate_steps=accumulate_steps)
        within(8, 4096, self, metric_size=metric_size)  # SSIM has windows of 11 pixels
        at_least(0, self, max_nonfinite_steps=max_nonfinite_steps)
        self.automatic_optimization = False
        self.tokenizer = tokenizer
        self.objective = objective
        objective.connect(tokenizer)
        self.optimizer_config = optimizer or OptimizerConfig()
        self.discriminator_config = discriminator_optimizer or self.optimizer_config
        self.gradient_clip = gradient_clip
        self.metric_size = metric_size
        self.init_from = init_from
        self.origin: dict[str, Any] | None = None  # of the weights that a run with init_from started from
        self.accumulate_steps = accumulate_steps
        self._batches_accumulated = 0
        self.guard = NonFiniteGuard(max_nonfinite_steps)
        self.compile_blocks = compile
        self.compiled = False
        if compile and not [*tokenizer.blocks()]:
            raise UserError(
                f"model.compile is on, but {type(tokenizer).__name__} has no blocks to compile: turn it off"
            )
        for module in tokenizer.modules():
            if isinstance(module, NormSwish):
                module.recompute = recompute_norms

    def configure_callbacks(self) -> list[pl.Callback]:
        """Check trainer and image size here: Lightning's own errors come later and name no remedy."""
        self.check_trainer(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        check_image_size(data, self.tokenizer.image_size, "model.tokenizer.image_size")
        return []

    def configure_model(self) -> None:
        """Load the weights that training starts from."""
        if self.trainer.state.fn == "fit" and self.resumes_from is None:
            if self.init_from is None:
                self.tokenizer.start()
            else:
                self.origin = continue_from(self.init_from, self.tokenizer, self.objective)

    @cached_property
    def frozen(self) -> dict[str, str]:
        """Identities of the tokenizer's frozen networks; cached, since their weights are hashed."""
        return self.tokenizer.frozen_identities()

    @cached_property
    def objective_frozen(self) -> dict[str, str]:
        """Identities of the frozen networks that the objective reads: teachers, perceptual distance, discriminator."""
        return self.objective.frozen_identities()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the frozen networks, and path, digest, step and release of the weights that the run started from."""
        if self.frozen:
            checkpoint[FROZEN] = self.frozen
        if self.objective_frozen:
            checkpoint[OBJECTIVE_FROZEN] = self.objective_frozen
        if self.origin is not None:
            checkpoint[INIT_FROM] = self.origin

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the origin of the weights; raises UserError if the frozen networks differ."""
        where = str(self.resumes_from or "the checkpoint")
        check_frozen(checkpoint.get(FROZEN), self.frozen, where)
        if OBJECTIVE_FROZEN in checkpoint and self.trainer.state.fn == "fit":  # other commands do not read them
            check_frozen(checkpoint[OBJECTIVE_FROZEN], self.objective_frozen, where)
        self.origin = checkpoint.get(INIT_FROM)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Autoencoder (with the trainable parts of the terms) first, then the discriminator if there is one."""
        optimizers = [self.optimizer_config.build(self._autoencoder_parameters(), network="autoencoder")]
        if self.objective.adversarial is not None:
            parameters = self.objective.adversarial.parameters()
            optimizers.append(self.discriminator_config.build(parameters, network="discriminator"))
        for optimizer in optimizers:
            optimizer.register_load_state_dict_post_hook(_lay_out_as_parameters)
        return optimizers

    def on_fit_start(self) -> None:
        """Load frozen networks, so that a missing file stops the run before its first step; compile.

        Raises:
            UserError: the schedule of the discriminator, which may start later, has no end.
        """
        self.objective.prepare(self.device)
        if self.objective.adversarial is not None:
            self.discriminator_config.learning_rate_at(0, self.trainer.max_steps)
        if self.compile_blocks:
            self.compiled = compile_modules(self.tokenizer.blocks(), self.device)

    def forward(self, images: Tensor) -> tuple[Decoded, Encoding]:
        """Images (B, 3, H, W) in [-1, 1] to their reconstruction and its encoding."""
        return self.tokenizer(images)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor] | None:
        """Gradients of both networks from the same reconstructions, one check, one update of each.

        Returns the codes, which callbacks count; None if the step was rejected or the tokenizer has none.
        """
        buffers = [buffer.clone() for buffer in self.buffers()]
        step = self._reconstruct(batch["image"])
        losses = self._autoencoder_backward(step) | self._discriminator_backward(step)
        norms = self._gradient_norms(step)
        if self._accept(step, losses, norms, buffers):
            return self._update(step, losses, norms)
        return None

    def on_validation_model_zero_grad(self) -> None:
        """Keep the gradients: Lightning would drop those of batches that the next update accumulates."""

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Any]:
        """Reconstruct in float32; callbacks measure and draw the result, which is not clamped if nothing is resized.

        Raises:
            RunError: the reconstruction is not finite, and would pass for black images in 8 bits.
        """
        # eager: no graphs of its own to compile, and the numbers of later stages, which do not compile
        eager = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        with eager, full_precision(self.device):  # the tokenizer that writes tokens
            decoded, encoding = self(batch["image"])
        if not bool(decoded.image.isfinite().all()):
            raise RunError("reconstructions are not finite, so they are not measured: train the tokenizer again")
        compared = {"image": batch["image"], "reconstruction": decoded.image.float()}
        if self.metric_size is not None:
            compared = {name: resize_displayed(images, self.metric_size) for name, images in compared.items()}
        return {**compared, "encoding": encoding}

    test_step = validation_step

    @staticmethod
    def check_trainer(trainer: pl.Trainer) -> None:
        """Reject trainer settings that manual optimization of two networks cannot honour.

        Raises:
            UserError: on accumulate_grad_batches, gradient_clip_val, fp16, bf16-true, FSDP of either version, and, when
                fitting, DDP that does not look for unused parameters (it would fail in the second step).
        """
        for flag, value, neutral, ours in (
            ("accumulate_grad_batches", trainer.accumulate_grad_batches, 1, "accumulate_steps"),
            ("gradient_clip_val", trainer.gradient_clip_val, None, "gradient_clip"),
        ):
            if value != neutral:
                raise UserError(
                    f"trainer.{flag} is set, but this model steps its optimizers itself: "
                    f"set model.{ours}={value} instead"
                )
        if str(trainer.precision) not in PRECISIONS:
            raise UserError(
                f"trainer.precision={trainer.precision} does not suit a model that steps two optimizers itself and "
                f"quantizes in float32: use {' or '.join(PRECISIONS)}"
            )
        if isinstance(trainer.strategy, FSDPStrategy):
            raise UserError(
                "trainer.strategy is FSDP version 1, which cannot step two optimizers by hand: "
                "use ddp_find_unused_parameters_true (configs/cluster/ddp.yaml)"
            )
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise UserError(
                "trainer.strategy is ModelParallelStrategy (FSDP version 2), which is for generators: a tokenizer is "
                "not sharded, use ddp_find_unused_parameters_true (configs/cluster/ddp.yaml)"
            )
        is_ddp = isinstance(trainer.strategy, DDPStrategy)
        if trainer.state.fn == "fit" and is_ddp and not trainer.strategy._ddp_kwargs.get("find_unused_parameters"):
            raise UserError(
                "trainer.strategy is ddp, which waits for gradients of all weights, and autoencoder and discriminator "
                "take turns: use ddp_find_unused_parameters_true (configs/cluster/ddp.yaml)"
            )

    def _reconstruct(self, images: Tensor) -> TokenizerStep:
        decoded, encoding = self(images)
        return TokenizerStep(images, decoded, encoding, self.tokenizer.last_layer, self.global_step)

    def _autoencoder_backward(self, step: TokenizerStep) -> dict[str, Tensor]:
        """Add to the gradients of the autoencoder; returns all parts of its loss by name, and their sum as ``loss``."""
        with self.toggled_optimizer(self._optimizers()[0]):
            loss, parts = self.objective(step)
            self.manual_backward(loss / self.accumulate_steps)
        return {**parts, "loss": loss}

    def _discriminator_backward(self, step: TokenizerStep) -> dict[str, Tensor]:
        """Add to the gradients of the discriminator once it is active; returns its loss and mean logits."""
        adversarial = self.objective.adversarial
        if adversarial is None or not adversarial.active(step.global_step):
            return {}
        with self.toggled_optimizer(self._optimizers()[1]):
            loss, logits = adversarial.discriminator_loss(step)
            self.manual_backward(loss / self.accumulate_steps)
        return {"discriminator": loss, **logits}

    def _gradient_norms(self, step: TokenizerStep) -> dict[str, Tensor]:
        """Gradient norms by network after the last of ``accumulate_steps`` batches; empty before."""
        if self._batches_accumulated + 1 < self.accumulate_steps:
            return {}
        return {network.name: gradient_norm(network.parameters) for network in self._networks(step.global_step)}

    def _accept(
        self, step: TokenizerStep, losses: dict[str, Tensor], norms: dict[str, Tensor], buffers: list[Tensor]
    ) -> bool:
        """Return True if the step is finite on all ranks, and undo it if not; reads one number from the device."""
        output = {"output of the decoder": step.decoded.image}
        terms = {name: value for name, value in losses.items() if name != "loss"}
        consequences = {"loss": losses["loss"], **{f"gradient of the {name}": norm for name, norm in norms.items()}}
        accepted = False
        try:
            accepted = self.guard.accept(output, terms, consequences, step=step.global_step)
        finally:
            if not accepted:
                self._undo(buffers)
        return accepted

    def _undo(self, buffers: list[Tensor]) -> None:
        """Drop the accumulated gradients and restore the buffers.

        The discriminator's batch norm would otherwise keep the statistics of a non-finite image.
        """
        for optimizer in self._optimizers():
            optimizer.zero_grad()
        for buffer, before in zip(self.buffers(), buffers, strict=True):
            buffer.copy_(before)
        self._batches_accumulated = 0

    def _update(
        self, step: TokenizerStep, losses: dict[str, Tensor], norms: dict[str, Tensor]
    ) -> dict[str, Tensor] | None:
        """Log the step, apply the gradients of the networks that have a norm, and return the codes."""
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items() if name != "loss"})
        self.log("train/loss", losses["loss"].detach(), prog_bar=True)
        self.log_dict({f"train/gradient_norm_{name}": norm for name, norm in norms.items()})
        self._batches_accumulated = (self._batches_accumulated + 1) % self.accumulate_steps
        for network in self._networks(step.global_step):
            if network.name not in norms:
                continue
            if self.gradient_clip is not None:
                torch.nn.utils.clip_grads_with_norm_(network.parameters, self.gradient_clip, norms[network.name])
            network.config.set_learning_rate(network.optimizer, step.global_step, self.trainer.max_steps)
            network.optimizer.step()
            network.optimizer.zero_grad()
        if norms:
            self.guard.reset()
        return None if step.encoding.codes is None else {"codes": step.encoding.codes}

    def _networks(self, global_step: int) -> Iterator[_Network]:
        """The networks that an update at ``global_step`` trains."""
        optimizers = self._optimizers()
        parameters = [*self._autoencoder_parameters()]
        yield _Network("autoencoder", parameters, optimizers[0], self.optimizer_config)
        adversarial = self.objective.adversarial
        if adversarial is not None and adversarial.active(global_step):
            parameters = [*adversarial.parameters()]
            yield _Network("discriminator", parameters, optimizers[1], self.discriminator_config)

    def _optimizers(self) -> list[Any]:
        """The autoencoder's wrapped optimizer, which counts global_step, and the discriminator's raw one."""
        wrapped = self.optimizers()
        if not isinstance(wrapped, list):
            return [wrapped]
        raw = self.optimizers(use_pl_optimizer=False)
        return [wrapped[0], raw[1]]  # type: ignore[index]

    def _autoencoder_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.tokenizer.parameters()
        yield from self.objective.terms.parameters()


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the memory layout of their parameters: fused AdamW reads both in order of memory, without a check.

    The moments of older checkpoints are those of a discriminator that was not channels_last.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class _Network(NamedTuple):
    """One of the two networks, and the optimizer that updates it."""

    name: str
    parameters: list[nn.Parameter]
    optimizer: Any
    config: OptimizerConfig
