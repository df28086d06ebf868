"""A program that trains a generator on two unsupervised ranks, kills one, and prints the outcome of the other."""

import json
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only

import cli
from callbacks.steer.rank_watch import RankWatch
from tests.support.generator_recipes import tiny, write_digit_codes

SECONDS, BEATS = 0.5, 6
HOW = {
    "kill": {"class_path": "tests.support.interrupt.KillAfter", "init_args": {"step": 3, "rank": 1}},
    "stop": {"class_path": "tests.support.interrupt.KillAfter", "init_args": {"step": 3, "rank": 1, "name": "SIGSTOP"}},
    "kill 0": {"class_path": "tests.support.interrupt.KillAfter", "init_args": {"step": 3, "rank": 0}},
    "fail": {"class_path": "tests.support.faults.Fail", "init_args": {"step": 3, "rank": 1}},
}


def start(rank: int, port: int, how: str) -> int:
    """Fork a rank as srun would start it, with its output in a file; returns its process id."""
    process = os.fork()
    if process:
        return process
    with Path(f"{how} {rank}.txt").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    os.environ.update({name: str(value) for name, value in names.items()})
    rank_zero_only.rank = rank  # which a fresh process reads from the environment at import
    os.environ.update(TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    code = 1
    try:
        last = {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 2}}
        trainer = {"max_steps": 9, "limit_val_batches": 0, "callbacks": [last, HOW[how]]}
        Path(f"{how} {rank}.yaml").write_text(yaml.safe_dump({"trainer": trainer}))
        ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
        small = ["--data.init_args.batch_size", "4", "--run.root", how, "--config", f"{how} {rank}.yaml"]
        cli.main(["fit", *tiny("stage2", Path("store")), *ranks, *small])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stderr.flush()
        if code == 1:
            sys.excepthook(*sys.exc_info())
        os._exit(code)


def run(how: str) -> dict[str, object]:
    """Exit code of the remaining rank, and the seconds until its exit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(rank, port, how) for rank in range(2)]
    survivor = 1 if how == "kill 0" else 0
    other = processes[1 - survivor]
    os.waitpid(other, os.WUNTRACED)
    lost = time.monotonic()
    code = None
    while code is None and time.monotonic() < lost + 60:
        process, status = os.waitpid(processes[survivor], os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if process else None
        time.sleep(0.1)
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass
    said = Path(f"{how} {survivor}.txt").read_text()
    return {"how": how, "code": code, "seconds": time.monotonic() - lost, "said": said}


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.argv = ["cli.py"]
    cli.RankWatch = partial(RankWatch, SECONDS, BEATS)
    write_digit_codes(Path("store"))
    for name in HOW:
        print(json.dumps(run(name)), flush=True)
