from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace

from commands.cli.runs import RunConfig, check_directory, place_outputs, resolve_checkpoint
from polytoken.errors import UserError


def test_a_run_has_a_fixed_directory() -> None:
    assert RunConfig("runs", "digits", "tokenizer/fq_dual").directory == Path("runs/digits/tokenizer/fq_dual")


@pytest.mark.parametrize("preset, stage", [("digits", None), ("digits", ""), ("digits", "/x"), ("..", "x"), ("", "x")])
def test_a_run_does_not_leave_its_root(preset: str, stage: str | None) -> None:
    with pytest.raises(UserError, match="run.(stage|preset)"):
        _ = RunConfig("runs", preset, stage).directory


def test_only_empty_directories_are_filled() -> None:
    def component(**arguments: str | None) -> Namespace:
        return Namespace(class_path="x", init_args=Namespace(**arguments))

    loggers = [component(save_dir=""), component(save_dir="mine")]
    callbacks = [component(dirpath=None), component(dirpath="mine"), Namespace(class_path="x")]
    trainer = Namespace(logger=loggers, callbacks=callbacks, default_root_dir=None)
    place_outputs(trainer, Path("runs/a"))
    assert trainer["default_root_dir"] == "runs/a"
    assert [logger["init_args"]["save_dir"] for logger in loggers] == ["runs/a", "mine"]
    assert [callback["init_args"]["dirpath"] for callback in callbacks[:2]] == ["runs/a/checkpoints", "mine"]


@pytest.mark.parametrize("logger", [None, False])
def test_a_run_without_logger_and_callbacks(logger: bool | None) -> None:
    place_outputs(Namespace(logger=logger, callbacks=None, default_root_dir="mine"), Path("runs/a"))


def test_last_is_the_runs_own_checkpoint(tmp_path: Path) -> None:
    run = RunConfig(str(tmp_path), "digits", "toy")
    assert resolve_checkpoint("last", run, "fit") is None
    with pytest.raises(UserError, match="validate needs a trained model, and there is no .*last.ckpt"):
        resolve_checkpoint("last", run, "validate")
    write(run.last_checkpoint)
    assert resolve_checkpoint("last", run, "fit") == str(run.last_checkpoint)
    assert resolve_checkpoint("last", run, "validate") == str(run.last_checkpoint)
    assert resolve_checkpoint(None, run, "validate") is None


def test_files_of_other_runs_nearby_do_not_matter(tmp_path: Path) -> None:
    run = RunConfig(str(tmp_path), "digits", "stage2/fq_dual")
    for name in ("stage2/checkpoints/last.ckpt", "stage1/fq_dual/checkpoints/last.ckpt", "stage2/hpc_ckpt_1.ckpt"):
        write(tmp_path / "digits" / name)
    assert resolve_checkpoint("last", run, "fit") is None


def test_the_previous_checkpoint_replaces_a_broken_one(tmp_path: Path) -> None:
    run = RunConfig(str(tmp_path), "digits", "toy")
    last = write(run.last_checkpoint)
    others = [write(last.with_name(name)) for name in ("previous.ckpt", "step_5.ckpt")]
    for broken, instead in zip([last, *others], [*others, None], strict=True):
        broken.write_bytes(broken.read_bytes()[:-50])
        if instead is None:
            with pytest.raises(UserError, match=r"last.ckpt cannot be read.*No checkpoint of this run is intact"):
                resolve_checkpoint("last", run, "fit")
        else:
            with pytest.warns(
                UserWarning, match=rf"{broken.name} cannot be read: it is cut short.*{instead.name} inst"
            ):
                assert resolve_checkpoint("last", run, "fit") == str(instead)
    last.unlink()  # as between two renames of a sharded checkpoint
    write(others[0])
    assert resolve_checkpoint("last", run, "fit") == str(others[0])


def test_a_checkpoint_by_name(tmp_path: Path) -> None:
    run = RunConfig(str(tmp_path), "digits", "toy")
    with pytest.raises(UserError, match=r"'best', and there is no .*best.ckpt: a run keeps its best"):
        resolve_checkpoint("best", run, "test")
    best = write(run.last_checkpoint.with_name("best.ckpt"))
    assert resolve_checkpoint("best", run, "test") == str(best)
    best.write_bytes(b"")
    with pytest.raises(UserError, match="best.ckpt cannot be read: it is cut short"):
        resolve_checkpoint(str(best), run, "fit")
    with pytest.raises(UserError, match="there is no nowhere.ckpt"):
        resolve_checkpoint("nowhere.ckpt", run, "fit")


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": 1}, path)
    return path


def test_a_run_without_a_logger_drops_its_monitor() -> None:
    callbacks = [Namespace(class_path="lightning.pytorch.callbacks.LearningRateMonitor"), Namespace(class_path="x")]
    trainer = Namespace(logger=False, callbacks=callbacks, default_root_dir=None)
    place_outputs(trainer, Path("runs/a"))
    assert trainer["callbacks"] == callbacks[1:]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"])
def test_names_that_no_directory_can_have(name: str) -> None:
    with pytest.raises(UserError, match="run.stage is .*no directory can have this name"):
        _ = RunConfig(stage=f"tokenizer/{name}").directory


def test_a_root_that_only_seems_writable() -> None:
    with pytest.raises(UserError, match="cannot be made in /proc"):
        check_directory(Path("/proc/polytoken/runs"))


def test_a_check_of_the_directory_leaves_nothing(tmp_path: Path) -> None:
    check_directory(tmp_path / "runs/digits")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["nowhere", "last.ckpt"])
def test_a_link_that_leads_nowhere_does_not_start_the_run_over(target: str, tmp_path: Path) -> None:
    run = RunConfig(root=str(tmp_path), stage="tokenizer/x")
    run.last_checkpoint.parent.mkdir(parents=True)
    run.last_checkpoint.symlink_to(target)
    with pytest.raises(UserError, match="last.ckpt cannot be read: .*No checkpoint of this run is intact"):
        resolve_checkpoint("last", run, "fit")
