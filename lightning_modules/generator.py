"""Training of a generator on stored tokens: both stages of the curriculum, and the baselines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from artifacts.lineage import TokensRead, begin_from, check_same_codes, write_lineage
from lightning_modules.guards import check_generator_strategy, check_precision
from polytoken.errors import UserError
from polytoken.generators.base import Generator
from polytoken.guard import NonFiniteGuard
from polytoken.loading import KEY, read_metadata, record_in
from polytoken.optimization import OptimizerConfig, gradient_norm
from polytoken.parallelize import shard
from polytoken.specs import Tokens, TokenSpec

TOTAL = "total"


class GeneratorModule(pl.LightningModule):
    """Trains a generator, of any family, on the tokens of a data module (SSQ section 4).

    The generator's parameters are created when the trainer starts, for the codes and classes of the token store. Its
    record goes into the checkpoint under ``generator``. An update whose loss or gradient is not finite is skipped and
    logged; it counts as a step.

    Args:
        generator: the network and its loss.
        optimizer: of all weights.
        init_from: run or checkpoint of an earlier stage, whose weights this run starts from. Weights only: to resume
            the same run, start it again.
        carried_learning_rate: peak learning rate of the carried weights; None is that of the others.
        freeze_carried_steps: updates during which carried weights stay as they are.
        max_nonfinite_steps: consecutive non-finite updates tolerated before raising.
    """

    def __init__(
        self,
        generator: Generator,
        optimizer: OptimizerConfig | None = None,
        init_from: str | None = None,
        carried_learning_rate: float | None = None,
        freeze_carried_steps: int = 0,
        max_nonfinite_steps: int = 10,
    ) -> None:
        super().__init__()
        if init_from is None and (carried_learning_rate is not None or freeze_carried_steps):
            raise UserError(
                "carried_learning_rate and freeze_carried_steps are for weights that another run hands over: "
                "set init_from, or leave them out"
            )
        self.generator = generator
        self.optimizer_config = optimizer or OptimizerConfig(learning_rate=1e-4, weight_decay=0.05)
        self.init_from = init_from
        self.carried_learning_rate = carried_learning_rate
        self.freeze_carried_steps = freeze_carried_steps
        # The command line says it, as Lightning does only once the weights may be in pieces.
        self.goes_on_from: str | None = None
        self._record: dict[str, Any] = {}
        self._guard = NonFiniteGuard(max_nonfinite_steps)
        self._losses: dict[str, Tensor] = {}

    def configure_callbacks(self) -> list[pl.Callback]:
        """Refuse a strategy that would train the generator wrongly, before it starts anything."""
        check_generator_strategy(self.trainer, self.goes_on_from)
        return []

    def configure_model(self) -> None:
        """Build the generator for the codes of the store; under ModelParallelStrategy (FSDP2), in pieces.

        Raises:
            ValueError: if the data are no token store, or the precision is fp16.
        """
        if self._record:
            return
        check_precision(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "tokenizer_fingerprint"):
            raise UserError(
                f"GeneratorModule reads codes from a token store, and data is {type(data).__name__}: "
                "set data.class_path to datamodules.TokenDataModule (make tokens writes the store)"
            )
        self._tokens = TokensRead.of(data)
        self.generator.connect(data.spec, data.num_classes)
        self._record = {
            **self._tokens.to_json(),
            "num_classes": data.num_classes,
            "class_to_idx": dict(data.class_to_idx),
            "lineage": None,
        }
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            self._begin_in_pieces()

    def _begin_in_pieces(self) -> None:
        """Do what needs whole weights, and cut them up; their checkpoint is read only when the optimizer is there."""
        if self.goes_on_from is not None:
            path = Path(self.goes_on_from)
            self._record = record_in(read_metadata(path), path)
        elif self.trainer.state.fn == "fit":
            self._record["lineage"] = begin_from(self.init_from, self.generator, self._tokens)
        compute = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
        assert self.device_mesh is not None
        shard(self.generator, self.device_mesh["data_parallel"], compute)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the lineage of the run.

        Raises:
            ValueError: if the store holds other codes than the checkpoint writes.
        """
        check_generator_strategy(self.trainer, self.trainer.ckpt_path)
        path = Path(self.trainer.ckpt_path or "the checkpoint")
        self._record = record_in(checkpoint, path)
        check_same_codes(self._record, self._tokens, path, self.init_from)

    def on_fit_start(self) -> None:
        """Write where the weights come from beside the checkpoints."""
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            write_lineage(Path(self.trainer.default_root_dir), self._record["lineage"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which codes the generator writes."""
        checkpoint[KEY] = self._record

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One AdamW; carried weights have groups of their own where they have a rate of their own.

        A run that begins takes over weights here: only now is it known that no checkpoint brings any, and averages of
        the weights (callbacks.EMA) begin right after.

        Raises:
            ValueError: if all weights are carried and would be frozen.
        """
        if self._record["lineage"] is None:
            self._record["lineage"] = begin_from(self.init_from, self.generator, self._tokens)
        if self.freeze_carried_steps and len([*self._carried_parameters()]) == len([*self.generator.parameters()]):
            raise UserError(
                f"freeze_carried_steps is {self.freeze_carried_steps}, and all weights are carried over from "
                f"{self.init_from}: nothing would be left to train, so set freeze_carried_steps to 0"
            )
        rate = self.carried_learning_rate
        if rate is None:
            return self.optimizer_config.build(self.parameters())
        carried = {id(parameter) for parameter in self._carried_parameters()}
        rest = (parameter for parameter in self.parameters() if id(parameter) not in carried)
        return self.optimizer_config.build(rest, self._carried_parameters(), rate / self.optimizer_config.learning_rate)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Return the generator's loss, after logging its parts by name."""
        self.optimizer_config.set_learning_rate(self.optimizers(), self.global_step, self.trainer.max_steps)  # type: ignore[arg-type]
        loss = self.generator.loss(Tokens(codes=batch["codes"]), batch["label"], self.global_step)
        self._losses = {f"{loss.name}/{part}": value.detach() for part, value in loss.parts.items()}
        self.log("train/loss", loss.total.detach(), prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in self._losses.items()})
        self.log_dict({f"train/{name}": value.detach() for name, value in loss.statistics.items()})
        return loss.total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the gradients of what is frozen, and all of them if one is not finite: no gradient, no update."""
        if self.global_step < self.freeze_carried_steps:
            # not requires_grad: under DDP the set of trained weights must stay the same
            for parameter in self._carried_parameters():
                parameter.grad = None
        norm = gradient_norm(self.parameters())
        self.log("train/gradient_norm", norm)
        if self._guard.accept({**self._losses, "gradient": norm}, step=self.global_step):
            self._guard.reset()
            return
        for parameter in self.parameters():
            parameter.grad = None

    def on_validation_epoch_start(self) -> None:
        """Reset the sums."""
        self._sums: dict[str, Tensor] = {}
        self._images = 0

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Sum the loss and its parts over the images of a batch, without the rows that pad it."""
        real = batch["index"] >= 0
        images = int(real.sum())
        # A rank with nothing but padding computes too: sharded weights make the other ranks wait for it.
        rows = real if images else ~real
        self._loss = self.generator.loss(Tokens(codes=batch["codes"][rows]), batch["label"][rows])
        for name, value in {TOTAL: self._loss.total, **self._loss.parts}.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().double().cpu() * images
        self._images += images

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss and its parts, and the bits that an image's codes take."""
        self._log_means("val")

    def on_test_epoch_end(self) -> None:
        """Log the same as after validation."""
        self._log_means("test")

    def _log_means(self, stage: str) -> None:
        sums = torch.stack([*self._sums.values(), torch.tensor(self._images, dtype=torch.float64)])
        sums = self.trainer.strategy.reduce(sums.float().to(self.device), reduce_op="sum")
        means = dict(zip(self._sums, sums[:-1] / sums[-1], strict=True))
        total = means.pop(TOTAL)
        name = f"{stage}/{self._loss.name}"
        for part, value in means.items():
            self.log(f"{name}/{part}", value, sync_dist=True)  # equal on all ranks; Lightning would warn
        if self._loss.unit == "nats":
            nats = torch.stack([*means.values()])
            total = nats.mean()
            bits = nats.sum() * self.spec.num_positions / math.log(2)
            self.log(f"{stage}/bits_per_image", bits, sync_dist=True)
        self.log(name, total, prog_bar=True, sync_dist=True)

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start

    @property
    def spec(self) -> TokenSpec:
        """Shape of the codes that the generator writes."""
        return TokenSpec.from_json(self._record["spec"])

    def _carried_parameters(self) -> Iterator[nn.Parameter]:
        source = self._record["lineage"]["init_from"]
        names = set(source["carried"]) if source else set()
        return (parameter for name, parameter in self.generator.named_parameters() if name in names)
