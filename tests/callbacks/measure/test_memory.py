"""The memory of a long run does not grow."""

import resource
from pathlib import Path

import pytest
from lightning.pytorch import Callback, Trainer

from callbacks import EMA
from callbacks.checkpoint.last_checkpoint import LastCheckpoint
from callbacks.checkpoint.random_state import RandomState
from callbacks.steer.requeue import Requeue
from tests.support.toy import ToyData, ToyModule, ToyQuantizer, ToyTokenizer


class Memory(Callback):
    """Resident memory in MiB at chosen steps."""

    def __init__(self, *steps: int) -> None:
        self.seen = dict.fromkeys(steps, 0.0)

    def on_train_batch_end(self, trainer: Trainer, *_) -> None:
        if trainer.global_step in self.seen:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.seen[trainer.global_step] = pages * resource.getpagesize() / 2**20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_memory_does_not_grow_over_2000_steps(tmp_path: Path) -> None:
    memory = Memory(200, 2000)
    callbacks = [LastCheckpoint(100), Requeue(), RandomState(), EMA(["tokenizer"]), memory]
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=2000,
        limit_val_batches=2,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ToyModule(ToyTokenizer(ToyQuantizer())), ToyData(batch_size=2, size=200))
    assert trainer.global_step == 2000
    assert memory.seen[2000] - memory.seen[200] < 30, memory.seen
