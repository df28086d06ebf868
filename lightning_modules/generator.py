"""Training of a generator on tokens, stored or encoded online: both stages of the curriculum, and the baselines."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from artifacts.lineage import check_same_teacher, check_same_tokens, hand_over, record_of, write_lineage
from datamodules.images import ImageDataModule
from datamodules.stored import StoredTokens
from lightning_modules.resuming import ResumingModule
from polytoken.codec import FrozenCodec
from polytoken.errors import UserError
from polytoken.generators.alignment import RepresentationAlignment
from polytoken.generators.base import Generator, GeneratorLoss
from polytoken.generators.code_alignment import CodeAlignment
from polytoken.generators.record import GeneratorRecord
from polytoken.guard import NonFiniteGuard
from polytoken.loading import GENERATOR, load_codec, read_metadata, record_in
from polytoken.optimization import OptimizerConfig, gradient_norm
from polytoken.parallelize import parallelize, shard
from polytoken.ranges import above, at_least
from polytoken.specs import Tokens, TokenSpec

TOTAL = "total"
ALIGNMENT = "alignment"
CODE_ALIGNMENT = "code_alignment"


class GeneratorModule(ResumingModule):
    """Trains a generator, of any family, on the tokens of a data module (SSQ section 4).

    The generator's parameters are created when the trainer starts, for the tokens and classes of the token store. Its
    record goes into the checkpoint under ``generator``. An update whose loss or gradient is not finite is skipped and
    logged; it counts as a step.

    Args:
        generator: the network and its loss.
        optimizer: of all weights.
        init_from: run or checkpoint of an earlier stage, whose weights this run starts from. Only weights are taken:
            to resume the same run, repeat its command.
        carried_learning_rate: peak learning rate of the carried weights; None is that of the others.
        freeze_carried_steps: updates during which carried weights stay as they are.
        max_nonfinite_steps: consecutive non-finite updates tolerated before raising.
        alignment: of the hidden states with a teacher, added to the loss; its weights are trained from scratch, and
            sampling does not read them.
        code_alignment: of the hidden states with the tokenizer's code vectors; the same holds for its weights.
    """

    def __init__(
        self,
        generator: Generator,
        optimizer: OptimizerConfig | None = None,
        init_from: str | None = None,
        carried_learning_rate: float | None = None,
        freeze_carried_steps: int = 0,
        max_nonfinite_steps: int = 10,
        alignment: RepresentationAlignment | None = None,
        code_alignment: CodeAlignment | None = None,
    ) -> None:
        super().__init__()
        above(0, self, carried_learning_rate=carried_learning_rate)
        at_least(0, self, freeze_carried_steps=freeze_carried_steps, max_nonfinite_steps=max_nonfinite_steps)
        if init_from is None and (carried_learning_rate is not None or freeze_carried_steps):
            raise UserError(
                "carried_learning_rate and freeze_carried_steps are for weights that another run hands over: "
                "set init_from, or leave them out"
            )
        self.generator = generator
        self.alignment = alignment
        self.code_alignment = code_alignment
        self.optimizer_config = optimizer or OptimizerConfig(learning_rate=1e-4, weight_decay=0.05)
        self.init_from = init_from
        self.carried_learning_rate = carried_learning_rate
        self.freeze_carried_steps = freeze_carried_steps
        self.record: GeneratorRecord | None = None  # set with the parameters
        self._codec: FrozenCodec | None = None  # where a batch does not hold what the generator learns
        self._carried: list[nn.Parameter] = []
        self.guard = NonFiniteGuard(max_nonfinite_steps)
        self._losses: dict[str, Tensor] = {}
        self._norm: Tensor  # of the gradients of the step

    def configure_callbacks(self) -> list[pl.Callback]:
        """Reject strategies that would train the generator wrongly, before they start processes."""
        self.check_strategy(self.resumes_from)
        return []

    def configure_model(self) -> None:
        """Create the parameters, hand weights over to a run that starts, then checkpoint, compile and shard.

        Weights are handed over while they are unsharded, and before callbacks.EMA copies them. A run that resumes gets
        its weights from Lightning afterwards.

        Raises:
            UserError: if the data are not tokens that the generator can learn, the precision is fp16, a setting would
                be ignored, or the earlier stage does not fit.
        """
        if self.record is not None:
            return
        self.check_precision()
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, StoredTokens):
            raise UserError(
                f"GeneratorModule reads the tokens of a token store, and data is {type(data).__name__}: set "
                "data.class_path to datamodules.TokenDataModule (make tokens writes the store)"
            )
        if self.alignment is not None and not isinstance(data, ImageDataModule):
            raise UserError(
                f"alignment compares with a teacher's view of the images, and data is {type(data).__name__}, which has "
                "none: set data.class_path to datamodules.OnlineTokenDataModule, or leave alignment out"
            )
        self._data_record = self.record = record_of(data)
        if self.resumes_from is not None:
            path = Path(self.resumes_from)
            self.record = record_in(read_metadata(path), path)  # latents are scaled as they were in training
        spec = self.record.described(self.generator, f"the token store {data.store}")
        trust = type(self.generator).__module__.split(".")[0]  # the configuration names it already
        embeds = self.generator.models == "latents" and data.spec is not None
        reads_vectors = self.generator.needs_code_vectors or self.code_alignment is not None
        if self.generator.needs_codec or embeds or reads_vectors or isinstance(data, ImageDataModule):
            self._codec = load_codec(self._data_record, f"{data.store} holds", data.store, (trust,))
        self.generator.connect(spec, data.num_classes, self._codec if self.generator.needs_codec else None)
        if self.generator.needs_code_vectors:
            assert self._codec is not None
            self.generator.take_code_vectors(self._codec.code_vectors())
        if self.code_alignment is not None:
            assert self._codec is not None
            self.code_alignment.connect(self.generator, self._codec)
        if self.alignment is not None:
            self.alignment.connect(self.generator)
            records = self._data_record, self.record
            self._data_record, self.record = (replace(one, teacher=self.alignment.identity) for one in records)
        if self.resumes_from is None and self.trainer.state.fn == "fit":
            self.generator.check_training()
            if self.init_from is not None:
                source = hand_over(self.init_from, self.generator, self.record, (trust,))
                self.record = replace(self.record, lineage=replace(self.record.lineage, init_from=source))
        mesh = None
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            assert self.device_mesh is not None
            mesh = self.device_mesh["data_parallel"]
        compute = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
        parallelize(self.generator, mesh, compute)
        if self.alignment is not None:
            shard(self.alignment.projector, mesh, compute)
        for projector in self.code_alignment.projectors if self.code_alignment is not None else ():
            shard(projector, mesh, compute)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the record.

        Raises:
            UserError: if the store holds other tokens than the checkpoint was trained on, or the teacher is another.
        """
        self.check_strategy(self.trainer.ckpt_path)
        path = Path(self.trainer.ckpt_path or "the checkpoint")
        self.record = record_in(checkpoint, path)
        check_same_tokens(self.record, self._data_record, path, self.init_from)
        check_same_teacher(self.record, self._data_record, path)

    def on_fit_start(self) -> None:
        """Write ``lineage.json`` into the run's directory."""
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            assert self.record is not None
            write_lineage(Path(self.trainer.default_root_dir), self.record.lineage)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record."""
        assert self.record is not None
        checkpoint[GENERATOR] = self.record.to_plain()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW; carried weights with a separate learning rate are separate groups.

        Raises:
            UserError: if all weights are carried and would be frozen.
        """
        assert self.record is not None
        source = self.record.lineage.init_from
        names = set(source.carried) if source else set()
        parameters = dict(self.generator.named_parameters())
        self._carried = [parameter for name, parameter in parameters.items() if name in names]
        if self.freeze_carried_steps and len(self._carried) == len(parameters):
            raise UserError(
                f"freeze_carried_steps is {self.freeze_carried_steps}, and all weights are carried over from "
                f"{self.init_from}: nothing would be left to train, so set freeze_carried_steps to 0"
            )
        rate = self.carried_learning_rate
        if rate is None:
            return self.optimizer_config.build(self.parameters())
        rest = [parameter for name, parameter in parameters.items() if name not in names]
        for alignment in (self.alignment, self.code_alignment):
            rest += alignment.parameters() if alignment is not None else []
        return self.optimizer_config.build(rest, self._carried, rate / self.optimizer_config.learning_rate)

    def tokens_of(self, batch: dict[str, Tensor]) -> Tokens:
        """Return what the generator learns from a batch: stored tokens, vectors of stored codes, or images encoded."""
        if "image" in batch:
            assert self._codec is not None
            return self._codec.encode(batch["image"], self.generator.models)
        if "latents" in batch:
            return Tokens(latents=batch["latents"])
        if self.generator.models == "codes":
            return Tokens(codes=batch["codes"])
        assert self._codec is not None
        return Tokens(latents=self._codec.embed_codes(batch["codes"]))

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Return the generator's loss and the weighted alignments, after logging the parts by name."""
        self.optimizer_config.set_learning_rate(self.optimizers(), self.global_step, self.trainer.max_steps)  # type: ignore[arg-type]
        loss, alignments = self._losses_of(batch, self.global_step)
        self._losses = {f"{loss.name}/{part}": value.detach() for part, value in loss.parts.items()}
        total = loss.total
        for name, (weight, value) in alignments.items():
            total = total + weight * value
            self._losses[name] = value.detach()
        self.log("train/loss", total.detach(), prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in self._losses.items()})
        self.log_dict({f"train/{name}": value.detach() for name, value in loss.statistics.items()})
        return total * self._accumulation_factor(batch_index)

    def _accumulation_factor(self, batch_index: int) -> float:
        """Factor of the loss of a batch: 1, and more in the last update of an epoch if it accumulates fewer batches.

        Lightning divides each loss by accumulate_grad_batches, so that other updates are means already.
        """
        every = self.trainer.accumulate_grad_batches
        rest = self.trainer.num_training_batches % every
        return every / rest if rest and batch_index >= self.trainer.num_training_batches - rest else 1.0

    def _losses_of(
        self, batch: dict[str, Tensor], step: int = 0
    ) -> tuple[GeneratorLoss, dict[str, tuple[float, Tensor]]]:
        """The generator's loss, and by name the weight and the unweighted value of each alignment."""
        tokens = self.tokens_of(batch)
        taps = {self.alignment.tap} if self.alignment is not None else set[int]()
        taps |= {*self.code_alignment.taps} if self.code_alignment is not None else set()
        loss = self.generator.loss(tokens, batch["label"], step, taps)
        found = {}
        if self.alignment is not None:
            found[ALIGNMENT] = self.alignment.weight, self.alignment(loss.hidden[self.alignment.tap], batch["image"])
        if self.code_alignment is not None:
            parts = self.code_alignment(loss.hidden, tokens.codes, loss.replaced)
            for name, value in parts._asdict().items():
                found[f"{CODE_ALIGNMENT}/{name}"] = self.code_alignment.weight, value
        return loss, found

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of frozen parameters; drop all if any is non-finite, which skips the update."""
        if self.global_step < self.freeze_carried_steps:
            # Not requires_grad: under DDP the set of trained weights must stay the same.
            for parameter in self._carried:
                parameter.grad = None
        self._norm = gradient_norm(self.parameters())
        self.log("train/gradient_norm", self._norm)
        if self.guard.accept({**self._losses, "gradient": self._norm}, step=self.global_step):
            self.guard.reset()
            return
        for parameter in self.parameters():
            parameter.grad = None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm that is logged, which Lightning would compute again."""
        if gradient_clip_val and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, self._norm)

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
        batch = {name: value[rows] for name, value in batch.items()}
        self._loss, alignments = self._losses_of(batch)
        values = {name: value for name, (_, value) in alignments.items()}
        self._aligned = [*values]
        for name, value in {TOTAL: self._loss.total, **values, **self._loss.parts}.items():
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
        for name in self._aligned:
            self.log(f"{stage}/{name}", means.pop(name), sync_dist=True)
        name = f"{stage}/{self._loss.name}"
        for part, value in means.items():
            self.log(f"{name}/{part}", value, sync_dist=True)  # equal on all ranks; Lightning would warn
        if self._loss.unit == "nats" and isinstance(self.generator.spec, TokenSpec):
            nats = torch.stack([*means.values()])
            total = nats.mean()
            bits = nats.sum() * self.generator.spec.num_positions / math.log(2)
            bound = "_bound" if self._loss.is_bound else ""
            self.log(f"{stage}/bits_per_image{bound}", bits, sync_dist=True)
        self.log(name, total, prog_bar=True, sync_dist=True)

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start

    def check_strategy(self, resumes_from: str | Path | None) -> None:
        """Reject strategies that would train the generator wrongly.

        Raises:
            UserError: for FSDP version 1, for mesh sizes other than data-parallel on all ranks, for a new sharded run
                that freezes weights, and for one that resumes from an unsharded checkpoint.
        """
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy):
            raise UserError(
                "trainer.strategy is FSDP version 1, which cannot clip the norm of gradients and adds them up in "
                "bfloat16: use ModelParallelStrategy (configs/cluster/fsdp.yaml) or ddp"
            )
        if not isinstance(strategy, ModelParallelStrategy):
            return
        ranks = self.trainer.num_devices * self.trainer.num_nodes
        sizes = strategy._data_parallel_size, strategy._tensor_parallel_size  # Lightning has no public names for them
        if sizes != (ranks, 1):
            raise UserError(
                f"trainer.strategy has data_parallel_size {sizes[0]} and tensor_parallel_size {sizes[1]}, and a "
                f"generator is sharded over data alone, here on {ranks} devices: set "
                f"trainer.strategy.init_args.data_parallel_size to {ranks} and tensor_parallel_size to 1"
            )
        if self.trainer.state.fn == "fit" and self.freeze_carried_steps and resumes_from is None:
            raise UserError(
                f"freeze_carried_steps is {self.freeze_carried_steps}, and a sharded run could not resume "
                "before they end: its checkpoints need the optimizer's moments of all weights, and frozen ones have "
                "none. Set freeze_carried_steps to 0 and a low carried_learning_rate, or train with ddp"
            )
        if self.trainer.state.fn == "fit" and resumes_from is not None and not Path(resumes_from).is_dir():
            raise UserError(
                f"{resumes_from} is of a run that was not sharded, and Lightning would hand its optimizer's moments "
                "to other weights: continue with the strategy it began with, or start another run with its weights "
                "(init_from)"
            )

    def check_precision(self) -> None:
        """Reject fp16, whose gradient scaler produces non-finite gradients by design."""
        if str(self.trainer.precision) in ("16-mixed", "16-true"):
            raise UserError(
                f"trainer.precision={self.trainer.precision} is fp16, which is not supported: use bf16-mixed"
            )
