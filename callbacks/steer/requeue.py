"""Save, requeue and exit on a signal (Ctrl-C included), or shortly before the SLURM allocation ends."""

from __future__ import annotations

import logging
import os
import re
import signal
import stat
import subprocess
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import LightningEnvironment

from callbacks.checkpoint.last_checkpoint import LastCheckpoint
from polytoken.errors import UserError
from polytoken.ranges import at_least

logger = logging.getLogger(__name__)

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, and the same command resumes
STOPPED = 130  # by Ctrl-C, as shells report it: a loop that restarts on 75 ends
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
FROM_TERMINAL = SIGNALS[2:]  # nohup and `command &` ignore these on purpose


class Requeue(Checkpoint):
    """Ends a run with exit code 75 after the batch in which a signal arrived, or time ran out.

    The signals are SIGUSR1, SIGTERM, SIGHUP (a closed terminal), SIGQUIT, and SIGINT: the first Ctrl-C saves and exits
    with 130, and a second one exits at once.

    All ranks agree first, since a signal may reach them in different batches, or only one of them. Then they write
    `last.ckpt`, rank 0 calls `scontrol requeue` if this is a SLURM job, and all exit. A validation is abandoned, since
    `last.ckpt` was written before it and the resumed run repeats it.

    A test and a prediction are abandoned too: a test starts over, and the writers of a prediction resume with the
    missing parts. Their ranks have different numbers of batches and cannot agree, so each one exits by itself, and the
    first one requeues the job, which ends the others.

    This replaces Lightning's requeueing, which saves inside the signal handler, between any two lines, and continues to
    train. The base class is Checkpoint because Lightning calls such callbacks last: a checkpoint is complete only when
    every other callback has seen the batch.

    Args:
        seconds_before_end: Seconds before the end of the allocation (SLURM_JOB_END_TIME) at which to exit; at most half
            of what is left of it at the start, since a short job would otherwise be requeued after each step.
    """

    def __init__(self, seconds_before_end: int = 180) -> None:
        at_least(0, self, seconds_before_end=seconds_before_end)
        self.seconds_before_end = seconds_before_end
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}  # handlers that Lightning does not restore
        self._leave_at: float | None = None
        self._step = 0
        self._last: LastCheckpoint | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the callback that saves, and the end of the allocation."""
        self._last = next((callback for callback in trainer.callbacks if isinstance(callback, LastCheckpoint)), None)
        if stage == "fit" and self._last is None:
            raise UserError("Requeue saves by LastCheckpoint: add callbacks.LastCheckpoint before it")
        if self._leave_at is None and (end := os.environ.get("SLURM_JOB_END_TIME", "")).isdigit():
            left = int(end) - time.time()
            if left > 0:
                self._leave_at = int(end) - min(self.seconds_before_end, left / 2)
            elif trainer.is_global_zero:
                logger.warning("SLURM_JOB_END_TIME=%s is over: it is of an earlier job, and is ignored", end)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step that a resumed run starts from, and install the signal handlers."""
        self._step = trainer.global_step
        self._listen(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers."""
        self._listen(trainer)

    on_test_start = on_predict_start = on_validation_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and exit if any rank was asked to; gradients accumulated between two steps cannot be saved."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._all_agree(trainer):
            assert self._last is not None
            self._last.save(trainer)
            self._leave(trainer, f"{self._last.last_model_path} holds step {self._last.step}")

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Abandon a validation, which starts over, unless `last.ckpt` does not hold its step."""
        in_fit = trainer.state.fn == "fit"
        if in_fit and (trainer.sanity_checking or self._last is None or not self._last.holds(trainer.global_step)):
            return
        if self._all_agree(trainer):
            self._leave(trainer, f"this was a validation after step {trainer.global_step}")

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Abandon a test, which starts over; ranks may have different numbers of batches, so each exits by itself."""
        self._leave_alone(trainer, "test starts over")

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Abandon a prediction, in the same way."""
        self._leave_alone(trainer, "predict resumes with the missing parts")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the handlers of signals from the terminal; Lightning restores the others."""
        while self._before:
            signal.signal(*self._before.popitem())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the handlers: no teardown follows."""
        self.teardown(trainer, pl_module, "")

    def _listen(self, trainer: Trainer) -> None:
        # replaces Lightning's handlers; Lightning restores the original ones when the command ends
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                before = signal.getsignal(signum)
                if signum not in FROM_TERMINAL:
                    signal.signal(signum, self._receive)
                elif before not in (signal.SIG_IGN, self._receive):
                    self._before[signum] = signal.signal(signum, self._receive)
        if trainer.received_sigterm:  # by Lightning's handler, before ours was installed
            self._received = signal.SIGTERM
            # private, since trainer.received_sigterm is read-only: Lightning would end the run with exit code 0
            trainer._signal_connector.received_sigterm = False

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        # only set a flag: the handler may interrupt a collective
        if signum == signal.SIGINT == self._received:
            os.write(2, b"\nstopped at once: what was saved before is whole, and the same command resumes\n")
            os._exit(STOPPED)
        if signum == signal.SIGINT:
            os.write(2, b"\nCtrl-C: the run saves after this step and exits; a second Ctrl-C exits at once\n")
        if signum == signal.SIGHUP:
            _close_terminal()
        self._received = signal.Signals(signum)

    def _reason(self) -> str | None:
        """Reason for this rank to exit, or None."""
        if self._received is not None:
            return self._received.name
        return "the allocation ends" if self._leave_at is not None and time.time() >= self._leave_at else None

    def _all_agree(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self._reason() is not None, all=False)

    def _leave_alone(self, trainer: Trainer, state: str) -> None:
        """Exit if this rank was asked to, without waiting for the others, which may have no batch left."""
        if self._reason() is not None:
            self._leave(trainer, state, together=False)

    def _leave(self, trainer: Trainer, state: str, together: bool = True) -> NoReturn:
        code = STOPPED if self._received == signal.SIGINT else EXIT_CODE
        if trainer.is_global_zero or not together:  # rank 0 may wait for the others without a batch of its own
            reason = self._reason() or "another rank was asked to stop"
            outlook = "the same command resumes" if code == STOPPED else self._requeue()
            logger.warning("%s: %s; %s (exit code %d)", reason, state, outlook, code)
        if together:
            trainer.strategy.barrier("requeued")
        # Lightning kills the main process at once if a rank that it started exits with a code other than 0
        started_by_lightning = isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment)
        raise SystemExit(0 if started_by_lightning and not trainer.is_global_zero else code)

    def _requeue(self) -> str:
        """Requeue this job, and describe the result."""
        job = job_id()
        if job is None:
            return "the same command resumes"
        shown = scontrol("show", "job", job)[0]
        # SIGTERM announces a preemption, after which SLURM requeues the job itself, or a cancellation. The shell may
        # also have inherited the id of a job that is over.
        if (ended := _ended(job, shown)) is not None:
            return ended
        if _field(shown, "BatchFlag") == "0":
            return f"job {job} is interactive (salloc), so it is not requeued; the same command resumes"
        failure = scontrol("requeue", job)[1]
        if failure is None:
            return f"job {job} is requeued"
        # another rank that left by itself may have requeued it in between
        return _ended(job, scontrol("show", "job", job)[0]) or (
            f"job {job} is not requeued ({failure}): submit it again"
        )


def job_id() -> str | None:
    """Id of this SLURM job; in an array that of the task, since the job's own id means the whole array."""
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def _field(shown: str, name: str) -> str | None:
    """Value of a field in the output of `scontrol show job`, such as JobState=RUNNING."""
    found = re.search(rf"\b{name}=(\w+)", shown)
    return found[1] if found else None


def _ended(job: str, shown: str) -> str | None:
    """Outlook of a job that SLURM ends or has ended, by the output of `scontrol show job`; None if it runs."""
    if (state := _field(shown, "JobState")) in (None, "RUNNING"):
        return None
    return f"SLURM ends job {job} ({state}), so it is not requeued from here; the same command resumes"


def _close_terminal() -> None:
    """Discard output to a terminal that is gone: writing to it would end the run before it has saved."""
    for stream in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def scontrol(*arguments: str) -> tuple[str, str | None]:
    """Output of scontrol, and the reason if it failed."""
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    if done.returncode == 0:
        return done.stdout, None
    return done.stdout, done.stderr.strip() or f"scontrol ended with {done.returncode}"
