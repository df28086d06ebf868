"""Two ranks with batches of b train a generator like one rank with batches of 2b, unsharded or sharded."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh

import cli
from artifacts.checkpoint_files import copy
from commands.consolidate import consolidate, main
from lightning_modules import GeneratorModule
from polytoken.loading import Checkpoint, load_generator
from polytoken.optimization import gradient_norm
from polytoken.parallelize import parallelize, placed_like, whole
from polytoken.sampling import CategoricalSampler, FlowSampler, ForcedCodes, RowNoise
from polytoken.specs import Tokens
from tests.polytoken.generators import test_next_scale as next_scale
from tests.support.commands import exit_code
from tests.support.conditioned import conditioned
from tests.support.diffusion import random_latents, small_diffusion
from tests.support.generator_recipes import GENERATOR, tiny, write_digit_codes
from tests.support.generators import TRUNK, per_code, random_codes, small_generator
from tests.support.ranks import run_on_ranks
from tests.support.recipes import CONFIGS

STEPS = ("2", "3")  # each run is stopped after the second step, and resumed
EQUAL = (
    *(part for name in ("resid", "ffn", "token", "class") for part in (f"--{GENERATOR}.trunk.{name}_dropout", "0")),
    *(f"--{GENERATOR}.noise.init_args.probability", "0", "--trainer.val_check_interval", "1"),
    *("--model.init_args.optimizer.learning_rate", "0.3", "--model.init_args.optimizer.schedule", "constant"),
    *("--model.init_args.carried_learning_rate", "0.1", "--trainer.accelerator", "cpu"),
    *("--trainer.gradient_clip_val", "0.01"),  # below the norms of all steps
)
SHARDED = (
    "--trainer.strategy.init_args.data_parallel_size",
    "2",
    f"--{GENERATOR}.trunk.compile",
    "false",
)


def fit(stage: str, steps: str, *arguments: str) -> None:
    sys.argv = ["cli.py"]
    with conditioned():
        recipe = tiny("stage2", Path("codes"))
        cli.main(["fit", *recipe, *EQUAL, *arguments, "--run.stage", stage, "--trainer.max_steps", steps])


def begin(stage1: str = "runs/digits/stage1/fq_dual") -> tuple[str, str]:
    return "--model.init_args.init_from", stage1


def two_ranks(rank: int) -> None:
    for stage, options in (("ddp", ()), ("fsdp", SHARDED)):
        overlay = ("--config", str(CONFIGS / f"cluster/{stage}.yaml"), "--trainer.devices", "2", *options)
        for steps in STEPS:
            fit(stage, steps, *begin(), *overlay)
            if stage == "fsdp" and rank == 0 and steps == STEPS[0]:
                Path("runs/digits/stage1").rename("gone")  # resuming does not need it
            dist.barrier()


def checkpoint_of(stage: str) -> dict:
    return dict(Checkpoint.open(f"runs/digits/{stage}").content)


def assert_alike(found: dict, expected: dict) -> None:
    """Compare weights, averages and moments."""
    average = [state["callbacks"]["EMA"]["average"] for state in (found, expected)]
    for one, other in ((found["state_dict"], expected["state_dict"]), average):
        assert one.keys() == other.keys()
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-6, msg=name)
    (mine,), (theirs,) = found["optimizer_states"], expected["optimizer_states"]
    assert [group["params"] for group in mine["param_groups"]] == [group["params"] for group in theirs["param_groups"]]
    assert [group["lr"] for group in mine["param_groups"]] == [group["lr"] for group in theirs["param_groups"]]
    for number, state in theirs["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(mine["state"][number][name], value, rtol=1e-3, atol=1e-7, msg=f"{number} {name}")


@pytest.mark.cluster
def test_two_ranks_equal_one_rank_with_twice_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Also when interrupted and resumed; the sharded checkpoint is consolidated, and resumed on one device."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    write_digit_codes(tmp_path / "codes", validation=11)
    one_code = ("--data.init_args.sub_codes", "[1]")
    assert exit_code("fit", *tiny("stage1", Path("codes")), *one_code, "--trainer.max_steps", "1") == 0
    fit("alone", "3", *begin(), "--data.init_args.batch_size", "16")
    run_on_ranks(two_ranks, tmp_path)
    expected = checkpoint_of("alone")
    carried = expected["generator"]["lineage"]["init_from"]["carried"]
    assert_alike(checkpoint_of("ddp"), expected)

    sharded = Path("runs/digits/fsdp/checkpoints/last.ckpt")
    with pytest.raises(ValueError, match="is a sharded checkpoint, and .*whole.ckpt is missing.*make consolidate"):
        load_generator("runs/digits/fsdp")
    main(["runs/digits/fsdp"])
    assert "as one file is runs/digits/fsdp/checkpoints/whole.ckpt" in capsys.readouterr().out
    found = checkpoint_of("fsdp")
    assert_alike(found, expected)
    assert found["generator"] == expected["generator"] and len(carried) > 5
    assert json.loads(Path("runs/digits/fsdp/lineage.json").read_text()) == expected["generator"]["lineage"]
    assert not list(sharded.parent.glob("*.tensors"))
    codes, labels = torch.randint(8, (3, 2, 6)), torch.tensor([0, 5, 9])
    hidden = [load_generator(f"runs/digits/{stage}").hidden(codes, labels) for stage in ("fsdp", "alone")]
    torch.testing.assert_close(*hidden, rtol=1e-4, atol=1e-5)
    for stage in ("ddp", "fsdp"):  # 11 images on two ranks: none twice, none missing
        figures = [
            json.loads(Path(f"runs/digits/{run}/metrics.json").read_text())["validate"] for run in (stage, "alone")
        ]
        assert figures[0]["n"] == figures[1]["n"] == 11
        assert figures[0]["metrics"]["val/nll"] == pytest.approx(figures[1]["metrics"]["val/nll"], rel=1e-5)

    fit("alone", "4", *begin(), "--data.init_args.batch_size", "16")
    whole_file = (
        "--ckpt_path",
        str(consolidate(sharded)),
        f"--{GENERATOR}.trunk.checkpointing",
        "true",
    )
    fit("fsdp", "4", *begin(), "--data.init_args.batch_size", "16", *whole_file)
    assert_alike(checkpoint_of("fsdp"), checkpoint_of("alone"))
    assert sharded.is_file() and sharded.with_name("previous.ckpt").is_dir()


def test_only_whole_sharded_checkpoints_are_consolidated(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    last = tmp_path / "checkpoints/last.ckpt"
    assert f"there is no checkpoint {last}" in capsys.readouterr().err
    last.parent.mkdir()
    last.touch()
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert "is one file already" in capsys.readouterr().err
    last.unlink()
    last.mkdir()
    torch.save({"global_step": 3}, last / "meta.pt")
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert "cannot be read: .metadata is missing in it" in capsys.readouterr().err
    torch.save({"global_step": 2}, last.with_name("whole.ckpt"))
    with pytest.raises(ValueError, match="whole.ckpt is of another step"):
        Checkpoint.open(tmp_path)
    kept = last.with_name("step_2.ckpt")  # has a file of its own
    shutil.copytree(last, kept)
    torch.save({"global_step": 2}, kept / "meta.pt")
    with pytest.raises(ValueError, match=r"whole_step_2.ckpt is missing: make one file of it by .*/step_2.ckpt`$"):
        Checkpoint.open(kept)
    torch.save({"global_step": 2}, last.with_name("whole_step_2.ckpt"))
    assert Checkpoint.open(kept).path == last.with_name("whole_step_2.ckpt")
    shutil.rmtree(last)
    with pytest.raises(FileNotFoundError):
        Checkpoint.open(tmp_path)


def test_a_sharded_checkpoint_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "next.ckpt").mkdir()
    (tmp_path / "next.ckpt/meta.pt").touch()
    (tmp_path / "previous.ckpt").touch()
    copy(tmp_path / "next.ckpt", tmp_path / "previous.ckpt")
    assert (tmp_path / "previous.ckpt/meta.pt").exists()


SAMPLER = CategoricalSampler(guidance=2.0)
LABELS = torch.tensor([0, 3, 1])


def results_of_shards(rank: int) -> dict[str, object]:
    """Results of a generator that is sharded over two ranks, both reading the same codes."""
    mesh = init_device_mesh("cpu", (2,))
    generator = small_generator(trunk=TRUNK.__class__(**(vars(TRUNK) | {"checkpointing": True})))
    names = list(generator.state_dict())
    parallelize(generator, mesh)
    codes, labels = random_codes(generator, 4)
    loss = generator.loss(Tokens(codes=codes), labels)
    loss.total.backward()
    weight = generator.trunk.blocks[0].attention.wqkv.weight
    result: dict[str, object] = {"loss": per_code(loss).detach(), "norm": gradient_norm(generator.parameters())}
    result["gradients"] = {name: whole(value.grad) for name, value in generator.named_parameters()}
    result["half"] = list(weight.to_local().shape)
    result["generated"] = generator.generate(LABELS, SAMPLER, seed=3)
    with torch.no_grad():
        weight.copy_(placed_like(torch.zeros(weight.shape), weight))
        result["zero"] = float(whole(weight).abs().sum())
        generator.loss(Tokens(codes=codes), labels)
    result["always sharded"] = all(hasattr(value, "to_local") for value in generator.parameters())
    result["names"] = list(generator.state_dict()) == names  # a call that could shard everything
    rounded = small_generator()
    parallelize(rounded, mesh, torch.bfloat16)
    total = rounded.loss(Tokens(codes=codes), labels).total
    total.backward()
    result["bfloat16"] = {"total": total.detach(), "type": str(rounded.class_embedding.weight.grad.dtype)}
    return result


@pytest.mark.cluster
def test_a_sharded_generator_equals_the_unsharded_one(tmp_path: Path) -> None:
    generator = small_generator()
    codes, labels = random_codes(generator, 4)
    loss = generator.loss(Tokens(codes=codes), labels)
    loss.total.backward()
    for found in run_on_ranks(results_of_shards, tmp_path):
        torch.testing.assert_close(found["loss"], per_code(loss).detach())
        torch.testing.assert_close(found["norm"], gradient_norm(generator.parameters()))
        for name, parameter in generator.named_parameters():
            torch.testing.assert_close(found["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
        assert torch.equal(found["generated"], generator.generate(LABELS, SAMPLER, seed=3))
        assert found["half"] == [48, 32] and found["zero"] == 0 and found["names"] and found["always sharded"]
        assert found["bfloat16"]["type"] == "torch.float32", "summed in float32"
        total = float(found["bfloat16"]["total"])
        assert total == pytest.approx(float(loss.total.detach()), rel=2e-2) and total != float(loss.total.detach())


def results_of_diffusion_shards(rank: int) -> dict[str, object]:
    """Results of a diffusion transformer that is sharded over two ranks, both reading the same latents."""
    mesh = init_device_mesh("cpu", (2,))
    generator = small_diffusion(checkpointing=True)
    parallelize(generator, mesh)
    tokens, labels = random_latents(4)
    loss = generator.loss(tokens, labels, taps=(1,))
    (loss.total + loss.hidden[1].square().mean()).backward()
    result: dict[str, object] = {"loss": loss.total.detach()}
    result["gradients"] = {name: whole(value.grad) for name, value in generator.named_parameters()}
    result["sampled"] = generator.sample(LABELS, FLOW, RowNoise(3, 0, 3, LABELS.device)).latents
    rounded = small_diffusion()
    parallelize(rounded, mesh, torch.bfloat16)
    total = rounded.loss(tokens, labels).total
    total.backward()
    result["bfloat16"] = total.detach()
    times = torch.tensor([0.5, 0.5 + 2**-10])  # one number in bfloat16
    with torch.no_grad():
        conditions: list[torch.Tensor] = []
        rounded.time_embedding.register_forward_hook(lambda _module, _inputs, output: conditions.append(output))
        rounded.velocity(torch.zeros(2, 3, 4, 6), times, torch.tensor([0, 0]))
    result["times"] = conditions[0]
    return result


FLOW = FlowSampler(method="heun", steps=2, guidance=2.0)


@pytest.mark.cluster
def test_a_sharded_diffusion_transformer_equals_the_unsharded_one(tmp_path: Path) -> None:
    generator = small_diffusion()
    tokens, labels = random_latents(4)
    loss = generator.loss(tokens, labels, taps=(1,))
    (loss.total + loss.hidden[1].square().mean()).backward()
    expected = generator.sample(LABELS, FLOW, RowNoise(3, 0, 3, LABELS.device)).latents
    for found in run_on_ranks(results_of_diffusion_shards, tmp_path):
        torch.testing.assert_close(found["loss"], loss.total.detach())
        for name, parameter in generator.named_parameters():
            torch.testing.assert_close(found["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
        torch.testing.assert_close(found["sampled"], expected)
        assert float(found["bfloat16"]) == pytest.approx(float(loss.total.detach()), rel=2e-2)
        assert found["times"].dtype == torch.float32 and not torch.equal(*found["times"])


def results_of_next_scale_shards(rank: int) -> dict[str, object]:
    """Results of a next-scale generator that is sharded over two ranks, both reading the same codes."""
    mesh = init_device_mesh("cpu", (2,))
    generator = next_scale.generator(checkpointing=True)
    parallelize(generator, mesh)
    codes = next_scale.codes()
    loss = generator.loss(Tokens(codes=codes), LABELS, taps=(1,))
    (loss.total + loss.hidden[1].square().mean()).backward()
    result: dict[str, object] = {"loss": loss.total.detach()}
    result["gradients"] = {name: whole(value.grad) for name, value in generator.named_parameters()}
    noise, forced = RowNoise(3, 0, 3, LABELS.device), ForcedCodes(codes, (0,), 2.0)
    result["sampled"] = generator.sample(LABELS, SAMPLER, noise).codes
    result["forced"] = generator.sample(LABELS, SAMPLER, noise, forced).codes
    rounded = next_scale.generator()
    parallelize(rounded, mesh, torch.bfloat16)
    total = rounded.loss(Tokens(codes=codes), LABELS).total
    total.backward()
    result["bfloat16"] = total.detach()
    result["sampled in bfloat16"] = rounded.sample(LABELS, SAMPLER, noise).codes
    return result


@pytest.mark.cluster
def test_a_sharded_next_scale_generator_equals_the_unsharded_one(tmp_path: Path) -> None:
    generator, codes = next_scale.generator(), next_scale.codes()
    loss = generator.loss(Tokens(codes=codes), LABELS, taps=(1,))
    (loss.total + loss.hidden[1].square().mean()).backward()
    noise, forced = RowNoise(3, 0, 3, LABELS.device), ForcedCodes(codes, (0,), 2.0)
    for found in run_on_ranks(results_of_next_scale_shards, tmp_path):
        torch.testing.assert_close(found["loss"], loss.total.detach())
        for name, parameter in generator.named_parameters():
            torch.testing.assert_close(found["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
        assert torch.equal(found["sampled"], generator.sample(LABELS, SAMPLER, noise).codes)
        assert torch.equal(found["forced"], generator.sample(LABELS, SAMPLER, noise, forced).codes)
        assert found["sampled in bfloat16"].shape == (3, 2, 30)
        total = float(found["bfloat16"])
        assert total == pytest.approx(float(loss.total.detach()), rel=2e-2) and total != float(loss.total.detach())


def test_unsupported_strategies_are_rejected(tmp_path: Path) -> None:
    module = GeneratorModule(small_generator())

    def check(strategy: object, path: Path | None = None) -> None:
        trainer = {"num_devices": 4, "num_nodes": 2, "state": SimpleNamespace(fn="fit")}
        module._trainer = SimpleNamespace(strategy=strategy, **trainer)
        module.check_strategy(path)

    with pytest.raises(ValueError, match="FSDP version 1.*use ModelParallelStrategy"):
        check(FSDPStrategy())
    for sizes in ((), (8, 2), (4, 2), (2, 1)):
        with pytest.raises(ValueError, match="on 8 devices: set .*parallel_size to 8 and tensor_parallel_size to 1"):
            check(ModelParallelStrategy(*sizes))
    sharded = ModelParallelStrategy(8, 1)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(ValueError, match="of a run that was not sharded"):
        check(sharded, tmp_path / "last.ckpt")
    check(sharded, tmp_path)
    check(sharded)
    module.freeze_carried_steps = 5
    check(sharded, tmp_path)  # past the freeze, it has all moments
    with pytest.raises(ValueError, match="freeze_carried_steps is 5, and a sharded run could not resume"):
        check(sharded)
    check(DDPStrategy())


def test_an_unsupported_strategy_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Raised before any process starts, if the overlay's size exceeds the devices."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    arguments = [*tiny("llamagen", write_digit_codes(tmp_path / "codes")), "--data.init_args.sub_codes", "[0]"]
    overlay = ("--config", str(CONFIGS / "cluster/fsdp.yaml"), "--trainer.devices", "1", "--trainer.accelerator", "cpu")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")  # otherwise Lightning would start ranks
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert exit_code("fit", *arguments, *overlay) == 2
    error = capsys.readouterr().err
    assert "error: trainer.strategy has data_parallel_size 8" in error and "Traceback" not in error
