"""Submission to SLURM, and the job script, with fake SLURM programs."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY
from tests.support.slurm import FakeSlurm


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make(*arguments: str) -> str:
    return run("make", "--no-print-directory", "-o", ".venv/.ready", "LAUNCH=slurm", *arguments)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    slurm.program("sbatch", prints="4711")
    return slurm


def test_one_stage_is_one_job(slurm: FakeSlurm, tmp_path: Path) -> None:
    order = ("stage2", "NODES=2", "GPUS=8", "PARTITION=a100", "TIME=1-00:00:00", "ARGS=--trainer.max_steps 5")
    runs = f"RUNS={tmp_path / 'runs'}"
    planned = make("-n", *order, runs, "PRESET=imagenet", "SBATCH_ARGS=--account=me")
    assert slurm.calls() == []
    make(*order, runs, "PRESET=imagenet", "DATA=/my  'own' images", "SBATCH_ARGS=--account=me")
    (call,) = slurm.calls()
    asked, made = call.split(" scripts/train.sbatch ")
    assert made == "stage2 PRESET=imagenet DATA=/my  'own' images ARGS=--trainer.max_steps 5"
    assert "'ARGS=--trainer.max_steps 5'" in planned and asked in planned
    for part in ("nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "partition=a100", "time=1-00:00:00", "account=me"):
        assert f" --{part}" in asked
    assert f"--output={tmp_path}/runs/slurm/%x-%j.log" in asked and (tmp_path / "runs/slurm").is_dir()


def test_the_curriculum_is_a_chain(slurm: FakeSlurm, tmp_path: Path) -> None:
    said = make("curriculum", "GPUS=4", "TOKENIZER=vq", f"RUNS={tmp_path / 'runs'}")
    calls = slurm.calls()
    stages = [call.split("train.sbatch ")[1].split()[0] for call in calls]
    assert stages == ["teacher", "tokenizer", "tokens", "stage1", "stage2", "sample", "evaluate", "report"]
    assert ["afterok:4711 --kill-on-invalid-dep=yes" in call for call in calls] == [False] + [True] * 7
    assert [4 if "--gpus-per-node=4" in call else 1 for call in calls] == [1, 4, 4, 4, 4, 4, 1, 1]
    make("stage1", "DEVICES=4", "STEPS=20", "RUN=low", f"RUNS={tmp_path / 'runs'}")
    assert "--gpus-per-node=4" in slurm.calls()[-1] and slurm.calls()[-1].endswith("stage1 RUN=low STEPS=20")
    assert all("TOKENIZER=vq" in call for call in calls) and "stage2: job 4711" in said
    assert ["STRATEGY=ddp" in call for call in calls] == [stage == "tokenizer" for stage in stages]
    imagenet = make("-n", "curriculum", "PRESET=imagenet", "TOKENIZER=vq", "GENERATOR=llamagen")
    assert "sbatch teacher" not in imagenet and "train.sbatch generator" in imagenet and "stage1" not in imagenet


def test_a_refused_submission_ends_the_chain(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.program("sbatch", fails="Invalid partition")
    with pytest.raises(AssertionError, match="Invalid partition"):
        make("curriculum", f"RUNS={tmp_path / 'runs'}")
    assert len(slurm.calls()) == 1


def test_only_stages_are_submitted(slurm: FakeSlurm) -> None:
    with pytest.raises(AssertionError, match="leave it out for test"):
        make("test")
    assert slurm.calls() == []


def test_the_job_runs_its_stage_with_srun() -> None:
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "6"}
    arguments = ("tokenizer", "STRATEGY=ddp", "-n", "-B", "-o", ".venv/.ready")
    plan = run("bash", "scripts/train.sbatch", *arguments, "ARGS=--trainer.max_steps 5", **job)
    (line,) = (line for line in plan.splitlines() if "configs/fq_dual.yaml" in line)
    launcher, command = line.split(" rank ")
    started, _, launcher = launcher.partition(" -- ")
    assert started.split() == [".venv/bin/python", "-m", "commands.stage", "runs/digits/tokenizer/fq_dual", "--named"]
    assert launcher.strip() == """srun --kill-on-bad-exit=1 sh -c 'trap "" USR1; exec "$@"'"""
    assert command.startswith(".venv/bin/python cli.py fit --config configs/fq_dual.yaml")
    assert "digits/tokenizer.yaml --config configs/cluster/ddp.yaml --config configs/cluster/slurm.yaml" in line
    assert "--trainer.num_nodes 2 --trainer.devices 8" in line and line.endswith("--trainer.max_steps 5")
    after = [line for line in plan.splitlines() if "commands.summary" in line]
    assert after and not any("srun" in line for line in after)
    text = (REPOSITORY / "scripts/train.sbatch").read_text()
    for option in ("--requeue", "--open-mode=append", "--signal=USR1@300"):
        assert f"\n#SBATCH {option}\n" in text


def test_the_job_does_not_submit_itself_again() -> None:
    """SLURM passes the environment of the submitting make to the job, with the variables of its command line."""
    handed = {"MAKEFLAGS": " -- LAUNCH=slurm ARGS=x", "MAKELEVEL": "1", "LAUNCH": "slurm", "ARGS": "x", "DEVICES": "8"}
    job = {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7"}
    plan = run("bash", "scripts/train.sbatch", "stage1", "-n", "-B", "-o", ".venv/.ready", **handed, **job)
    assert "srun" in plan and "sbatch" not in plan and not any(line.endswith(" x") for line in plan.splitlines())


def test_the_job_exports_its_end_time(slurm: FakeSlurm, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("said:\n\t@echo end $$SLURM_JOB_END_TIME\n")
    job = {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "9", "TZ": "UTC"}
    arguments = ("bash", "scripts/train.sbatch", "-f", str(tmp_path / "Makefile"), "said")
    assert run(*arguments, **job) == "end\n", "no SLURM answers"
    for prints, expected in (("2026-11-22T21:27:04", "end 1795382824\n"), ("NONE", "end\n"), ("", "end\n")):
        slurm.program("squeue", prints=prints)
        assert run(*arguments, **job) == expected
    run(*arguments, **job, SLURM_ARRAY_JOB_ID="8", SLURM_ARRAY_TASK_ID="1")
    assert [call.split()[3] for call in slurm.calls()] == ["9", "9", "9", "8_1"], "a plain 8 may mean all tasks"


def test_cluster_files_overlay_every_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    import cli
    from tests.support.commands import TOY

    monkeypatch.setattr("sys.argv", ["cli.py"])
    for name, value in {"NTASKS": 1, "NTASKS_PER_NODE": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    files = ("--config", TOY, "--config", "configs/cluster/ddp.yaml", "--config", "configs/cluster/slurm.yaml")
    monkeypatch.setattr(cli.CommandLine, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.chdir(REPOSITORY)
    trainer = cli.CommandLine(["fit", *files]).trainer
    environment = trainer._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment) and environment.auto_requeue is False
    assert trainer.strategy._ddp_kwargs == {"find_unused_parameters": True}
