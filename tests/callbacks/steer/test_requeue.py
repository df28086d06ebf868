"""At a signal, a run saves, requeues itself and exits with 75; it resumes bit for bit."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from callbacks.checkpoint.last_checkpoint import LastCheckpoint
from callbacks.steer import requeue
from callbacks.steer.requeue import EXIT_CODE, STOPPED, Requeue, job_id
from tests.end_to_end.test_cli import assert_equal
from tests.support.commands import TOY, exit_code, forked, go_to
from tests.support.slow import slow_but
from tests.support.slurm import FakeSlurm
from tests.support.toy import ToyModule

LAST = Path("runs/default/toy/checkpoints/last.ckpt")


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Signals as in a terminal: under nohup, and in the background of a shell, the tests would inherit ignored ones."""
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    for one in before:
        signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.fixture(autouse=True)
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    go_to(tmp_path, monkeypatch)
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    slurm.program("scontrol", prints="JobId=7 JobState=RUNNING Reason=None")
    return slurm


def arguments(**interrupt: object) -> list[str]:
    callback = {"class_path": "tests.support.interrupt.KillAfter", "init_args": interrupt}
    return ["--config", TOY, *(["--trainer.callbacks+", json.dumps(callback)] if interrupt else [])]


def fit(*options: str, **interrupt: object) -> int:
    return exit_code("fit", *arguments(**interrupt), *options)


def state(path: Path = LAST) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("in_validation", [False, True])
@pytest.mark.parametrize("name", slow_but(("SIGUSR1",), ("SIGUSR1", "SIGTERM")))
def test_a_signal_saves_and_requeues(
    name: str,
    in_validation: bool,
    slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    handlers = [signal.getsignal(signum) for signum in requeue.SIGNALS]
    assert fit("--run.root", "whole") == 0
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    step = 2 if in_validation else 1  # neither is a multiple of every_n_train_steps=3
    assert fit(step=step, name=name, in_validation=in_validation) == EXIT_CODE == 75
    assert state()["global_step"] == step
    assert slurm.calls() == ["scontrol show job 7", "scontrol requeue 7"]
    assert f"{name}: " in caplog.text and "job 7 is requeued (exit code 75)" in caplog.text
    assert [signal.getsignal(signum) for signum in requeue.SIGNALS] == handlers

    for stray in (LAST.parents[2] / "stage1/checkpoints/last.ckpt", LAST.parents[1] / "hpc_ckpt_1.ckpt"):
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_text("of another stage, and of Lightning's own requeueing")
    assert fit() == 0
    assert_equal(state(), state("whole" / LAST.relative_to("runs")))


@pytest.mark.parametrize(("name", "step"), slow_but(("SIGTERM",), (("SIGTERM", 3), ("SIGKILL", 3), ("SIGKILL", 4))))
def test_a_validation_that_was_abandoned_is_repeated(
    name: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the next step, and with the random numbers that it would have drawn."""
    validated: list[tuple[int, float]] = []

    def note(self: ToyModule) -> None:
        if self.trainer.state.fn == "fit":
            validated.append((self.trainer.global_step, float(self.trainer.callback_metrics["val/loss"])))

    monkeypatch.setattr(ToyModule, "on_validation_end", note)
    often = ("--trainer.val_check_interval", "1")  # step 3 lies inside of an epoch, step 4 at the end of one
    assert fit("--run.root", "whole", *often) == 0
    whole = validated.copy()
    assert [step for step, _ in whole] == [1, 2, 3, 4, 5, 6]
    if name == "SIGKILL":
        killed = forked("fit", *arguments(step=step, name=name, in_validation=True), *often, cwd=tmp_path)
        assert killed.returncode == -signal.SIGKILL
    else:
        assert fit(*often, step=step, name=name, in_validation=True) == EXIT_CODE
    validated.clear()
    assert fit(*often) == 0
    assert validated == whole[step - 1 :]
    assert_equal(state(), state("whole" / LAST.relative_to("runs")))


def test_sigterm_before_the_handlers_are_installed(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = Requeue.on_train_start

    def late(self: Requeue, *arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # Lightning's handler takes it
        listen(self, *arguments)

    monkeypatch.setattr(Requeue, "on_train_start", late)
    assert fit() == EXIT_CODE
    assert state()["global_step"] == 1


def test_without_slurm(slurm: FakeSlurm, caplog: pytest.LogCaptureFixture) -> None:
    assert fit(step=1, name="SIGTERM") == EXIT_CODE
    assert slurm.calls() == [] and "the same command resumes" in caplog.text


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])  # SIGTERM may have reached another rank
def test_a_cancelled_job_is_not_requeued(
    name: str, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slurm.program("scontrol", prints="JobId=7 JobState=CANCELLED Reason=None")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert fit(step=1, name=name) == EXIT_CODE
    assert slurm.calls() == ["scontrol show job 7"] and state()["global_step"] == 1
    assert "SLURM ends job 7 (CANCELLED), so it is not requeued from here" in caplog.text


@pytest.mark.parametrize("missing", [False, True])
def test_a_job_that_cannot_be_requeued(missing: bool, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.program("scontrol", fails="Requested operation is disabled")
    if missing:
        monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    text = Requeue()._requeue()
    assert "job 7 is not requeued" in text and "submit it again" in text
    assert ("No such file" if missing else "operation is disabled") in text


def test_a_task_of_an_array_is_requeued_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "40")
    assert job_id() == "40"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert job_id() == "40_3"


def test_it_exits_before_the_allocation_ends(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start, now = time.time(), [0.0]
    monkeypatch.setattr(requeue, "time", SimpleNamespace(time=lambda: start + now[0]))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(start) + 3600))
    callback = Requeue(seconds_before_end=180)
    trainer = SimpleNamespace(callbacks=[LastCheckpoint()])
    callback.setup(trainer, None, "fit")
    now[0] = 3400
    assert callback._reason() is None
    now[0] = 3421
    assert callback._reason() == "the allocation ends"
    callback = Requeue(seconds_before_end=180)  # requeued into an allocation of three minutes
    callback.setup(trainer, None, "fit")
    assert callback._leave_at == pytest.approx(start + 3510, abs=2)

    def tick() -> float:
        now[0] += 1
        return start + now[0]

    monkeypatch.setattr(requeue, "time", SimpleNamespace(time=tick))
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(start + now[0]) + 3))
    assert fit() == EXIT_CODE
    assert state()["global_step"] == 1 and slurm.calls() == ["scontrol show job 7", "scontrol requeue 7"]
    assert "the allocation ends" in caplog.text


def test_the_end_of_an_earlier_job_is_ignored(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) - 5))  # inherited by a shell
    callback = Requeue()
    callback.setup(SimpleNamespace(callbacks=[LastCheckpoint()], is_global_zero=True), None, "fit")
    assert callback._reason() is None
    assert "is over: it is of an earlier job, and is ignored" in caplog.text


@pytest.mark.parametrize(
    ("shown", "says"),
    [
        ("JobId=7 JobState=RUNNING BatchFlag=0", "job 7 is interactive (salloc), so it is not requeued"),
        ("JobId=7 JobState=COMPLETED BatchFlag=1", "SLURM ends job 7 (COMPLETED), so it is not requeued from here"),
    ],
)
def test_an_interactive_or_finished_job_is_not_requeued(
    shown: str, says: str, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.program("scontrol", prints=shown)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert says in Requeue()._requeue()
    assert slurm.calls() == ["scontrol show job 7"]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", STOPPED), ("SIGHUP", EXIT_CODE), ("SIGQUIT", EXIT_CODE)])
def test_signals_of_a_terminal_save(
    name: str, code: int, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handlers = [signal.getsignal(signum) for signum in requeue.SIGNALS]
    monkeypatch.setattr(requeue, "_close_terminal", lambda: None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert fit(step=1, name=name) == code
    assert state()["global_step"] == 1 and f"(exit code {code})" in caplog.text
    assert bool(slurm.calls()) == (code == EXIT_CODE)  # a Ctrl-C requeues nothing
    assert [signal.getsignal(signum) for signum in requeue.SIGNALS] == handlers


def test_an_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        assert fit(step=1, name="SIGHUP") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_ctrl_c_exits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    callback = Requeue()
    callback._receive(signal.SIGINT, None)
    assert not left and callback._reason() == "SIGINT"
    callback._receive(signal.SIGINT, None)
    assert left == [STOPPED]


def test_a_closed_terminal_does_not_end_the_run() -> None:
    """A line written to a terminal that is gone would raise before the run has saved."""
    master, terminal = os.openpty()
    child = os.fork()
    if not child:
        try:
            for stream in (1, 2):
                os.dup2(terminal, stream)
            os.close(master)
            os.close(terminal)
            with suppress(OSError):
                while True:  # until the terminal is gone
                    os.write(1, b".")
            requeue._close_terminal()
            os._exit(EXIT_CODE if os.write(1, b"x") + os.write(2, b"x") == 2 else 1)
        finally:  # a child that raised would run the other tests
            os._exit(1)
    os.close(terminal)
    os.read(master, 1)
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == EXIT_CODE


def test_it_waits_for_the_end_of_an_accumulated_step() -> None:
    callback, saved = Requeue(), []
    callback._last = SimpleNamespace(
        save=lambda _: saved.append(1), holds=lambda step: False, last_model_path="x", step=1
    )
    callback._receive(signal.SIGTERM, None)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda own, all: own, barrier=lambda name: None)
    trainer = SimpleNamespace(
        global_step=0, strategy=strategy, is_global_zero=True, state=SimpleNamespace(fn="fit"), sanity_checking=False
    )
    callback.on_train_batch_end(trainer, None, None, None, 0)  # accumulates: its gradients are in no checkpoint
    callback.on_validation_batch_end(trainer)
    assert not saved
    trainer.global_step = 1
    with pytest.raises(SystemExit, match="75"):
        callback.on_train_batch_end(trainer, None, None, None, 1)
    assert saved


def test_other_commands_exit_too() -> None:
    options = arguments(step=0, name="SIGTERM", in_validation=True)
    assert exit_code("validate", "--ckpt_path", "null", *options) == EXIT_CODE
    asked, trainer = Requeue(), SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace())
    asked.on_predict_batch_end(trainer, None, None, None, 0)
    asked._receive(signal.SIGUSR1, None)
    with pytest.raises(SystemExit, match="75"):
        asked.on_predict_batch_end(trainer, None, None, None, 0)


@pytest.mark.parametrize("hook", ["on_predict_batch_end", "on_test_batch_end"])
def test_the_rank_that_leaves_first_requeues(
    hook: str, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rank 0 may have no batch left, and wait for the others in the writer."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    trainer = SimpleNamespace(is_global_zero=False, strategy=SimpleNamespace())  # which knows no collectives
    asked = Requeue()
    asked._receive(signal.SIGUSR1, None)
    with pytest.raises(SystemExit, match="75"):
        getattr(asked, hook)(trainer)
    assert slurm.calls() == ["scontrol show job 7", "scontrol requeue 7"]
    slurm.program("scontrol", prints="JobId=7 JobState=COMPLETING Reason=None")
    with pytest.raises(SystemExit, match="75"):
        getattr(asked, hook)(trainer)
    assert slurm.calls()[2:] == ["scontrol show job 7"]
    assert "job 7 is requeued" in caplog.text and "SLURM ends job 7 (COMPLETING)" in caplog.text


def test_two_ranks_that_requeue_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    states = iter(["RUNNING", "COMPLETING"])

    def scontrol(command: str, *_: str) -> tuple[str, str | None]:
        shows = command == "show"
        return (f"JobId=7 JobState={next(states)}", None) if shows else ("", "Job is already completing")

    monkeypatch.setattr(requeue, "scontrol", scontrol)
    assert Requeue()._requeue().startswith("SLURM ends job 7 (COMPLETING)")


def test_it_needs_last_checkpoint() -> None:
    with pytest.raises(ValueError, match=r"add callbacks\.LastCheckpoint"):
        Requeue().setup(SimpleNamespace(callbacks=[]), None, "fit")
    with pytest.raises(ValueError, match="seconds_before_end is -1; it must be at least 0"):
        Requeue(seconds_before_end=-1)


def test_a_ctrl_c_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Requeue, "setup", pressed)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):  # and not Lightning's exit code 1
            fit()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not LAST.exists()
