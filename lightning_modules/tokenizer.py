"""Training of any tokenizer: one batch, one update of the autoencoder and one of its discriminator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_modules.guards import NonFiniteGuard, check_has_codes, check_manual_trainer, check_takes_turns
from polytoken.losses import TokenizerObjective, TokenizerStep
from polytoken.optimization import OptimizerConfig, gradient_norm
from polytoken.specs import Encoding
from polytoken.tokenizers import Tokenizer


class TokenizerModule(pl.LightningModule):
    """Tokenizer, objective and their two optimizers, by manual optimization.

    ``global_step`` counts updates of the autoencoder: the discriminator's optimizer is stepped raw, past Lightning's
    counter. A step with a non-finite loss or gradient is left out and named.

    Args:
        tokenizer: the network.
        objective: the named loss terms and the adversarial block.
        optimizer: of the autoencoder.
        discriminator_optimizer: of the discriminator; None copies ``optimizer``.
        gradient_clip: largest gradient norm of each network, clipped separately; None leaves them.
        accumulate_steps: batches an update.
        max_nonfinite_steps: non-finite steps in a row that are borne.
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
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tokenizer = tokenizer
        self.objective = objective
        objective.connect(tokenizer)
        self.optimizer_config = optimizer or OptimizerConfig()
        self.discriminator_config = discriminator_optimizer or self.optimizer_config
        self.gradient_clip = gradient_clip
        self.accumulate_steps = accumulate_steps
        self._batches_accumulated = 0
        self._guard = NonFiniteGuard(max_nonfinite_steps)
        self._discriminator_guard = NonFiniteGuard(max_nonfinite_steps)

    def configure_callbacks(self) -> list[pl.Callback]:
        """Refuse a trainer this module cannot obey; Lightning's own refusal, later, names no remedy."""
        check_manual_trainer(self.trainer)
        if self.trainer.state.fn == "fit":
            check_takes_turns(self.trainer)
        return []

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Autoencoder (with trainable parts of the terms) first, then the discriminator, if there is one."""
        optimizers = [self.optimizer_config.build(self._autoencoder_parameters())]
        if self.objective.adversarial is not None:
            optimizers.append(self.discriminator_config.build(self.objective.adversarial.parameters()))
        return optimizers

    def on_fit_start(self) -> None:
        """Load frozen networks now, so that a missing file stops the run before its first step."""
        self.objective.prepare(self.device)

    def forward(self, images: Tensor) -> tuple[Tensor, Encoding]:
        """Images (B, 3, H, W) in [-1, 1] to their reconstruction and its encoding."""
        return self.tokenizer(images)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor] | None:
        """One batch: autoencoder first, then the discriminator on the same reconstructions; returns the codes."""
        step = self._step(batch["image"])
        updates = self._batches_accumulated + 1 == self.accumulate_steps
        adversarial = self.objective.adversarial
        accepted = (
            # asked first, or a bad image would stay in the discriminator's batch-norm statistics for good
            self._guard.accept({"output of the decoder": step.reconstruction}, step.step)
            and self._train_autoencoder(step, updates)
            and (adversarial is None or not adversarial.active(step.step) or self._train_discriminator(step, updates))
        )
        if not accepted:
            for optimizer in self._optimizers():
                optimizer.zero_grad()
        self._batches_accumulated = 0 if updates or not accepted else self._batches_accumulated + 1
        codes = step.encoding.codes
        return {"codes": codes} if accepted and codes is not None else None

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Any]:
        """Reconstruct, without clamping; callbacks measure and draw what is returned."""
        reconstruction, encoding = self(batch["image"])
        return {"reconstruction": reconstruction.float(), "encoding": encoding}

    test_step = validation_step

    def on_predict_start(self) -> None:
        """Refuse a tokenizer without codes."""
        check_has_codes(self.tokenizer)

    def predict_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor | None]:
        """Codes (B, k, N) with the labels and indices of their images."""
        codes = self.tokenizer.encode(batch["image"]).codes
        return {"codes": codes, "label": batch["label"], "index": batch["index"]}

    def _step(self, images: Tensor) -> TokenizerStep:
        reconstruction, encoding = self(images)
        return TokenizerStep(images, reconstruction, encoding, self.tokenizer.last_layer, self.global_step)

    def _train_autoencoder(self, step: TokenizerStep, updates: bool) -> bool:
        optimizer = self._optimizers()[0]
        parameters = list(self._autoencoder_parameters())
        with self.toggled_optimizer(optimizer):
            loss, parts = self.objective(step)
            if not self._guard.accept(parts, step.step):
                return False
            self.manual_backward(loss / self.accumulate_steps)
        self.log_dict({f"train/{name}": value.detach() for name, value in parts.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        if not updates:
            return True
        return self._update(optimizer, parameters, self.optimizer_config, self._guard, "autoencoder", step.step)

    def _train_discriminator(self, step: TokenizerStep, updates: bool) -> bool:
        adversarial = self.objective.adversarial
        assert adversarial is not None
        optimizer, guard = self._optimizers()[1], self._discriminator_guard
        with self.toggled_optimizer(optimizer):
            loss, logits = adversarial.discriminator_loss(step)
            if not guard.accept({"discriminator": loss}, step.step):
                return False
            self.manual_backward(loss / self.accumulate_steps)
        self.log_dict({f"train/{name}": value for name, value in logits.items()})
        self.log("train/discriminator", loss.detach())
        if not updates:
            return True
        parameters = list(adversarial.parameters())
        return self._update(optimizer, parameters, self.discriminator_config, guard, "discriminator", step.step)

    def _update(
        self,
        optimizer: Any,
        parameters: list[nn.Parameter],
        config: OptimizerConfig,
        guard: NonFiniteGuard,
        name: str,
        step: int,
    ) -> bool:
        """Clip, check and apply the gathered gradients of one network; False if they were not finite."""
        norm = gradient_norm(parameters)
        self.log(f"train/gradient_norm_{name}", norm)
        if not guard.accept({f"gradient of the {name}": norm}, step):
            return False
        guard.reset()
        if self.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.gradient_clip, norm)
        config.apply(optimizer, step, self.trainer.max_steps)
        optimizer.step()
        optimizer.zero_grad()
        return True

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
