"""One command-line option switches off each term of fq_triple's objective, for the ablation."""

from pathlib import Path

import pytest
import torch

import cli
from lightning_modules import TokenizerModule
from polytoken.losses import TokenizerStep
from tests.support.commands import exit_code
from tests.support.recipes import digits, write_judge

OBJECTIVE = "model.init_args.objective"
BRANCH = "model.init_args.tokenizer.init_args.quantizer.init_args.branch.init_args"
SWITCHES = {
    "reconstruction": f"{OBJECTIVE}.reconstruction.init_args.weight",
    "perceptual": f"{OBJECTIVE}.perceptual.init_args.weight",
    "disentanglement": f"{OBJECTIVE}.disentanglement.init_args.weight",
    "alignment_mid": f"{OBJECTIVE}.alignment_mid.init_args.weight",
    "alignment_high": f"{OBJECTIVE}.alignment_high.init_args.weight",
    "adversarial": f"{OBJECTIVE}.adversarial.weight",
    "codebook": f"{BRANCH}.codebook_weight",
    "commitment": f"{BRANCH}.commitment_weight",
    "entropy": f"{BRANCH}.entropy_weight",
}
FILES = {"perceptual": "perceptual", "alignment_mid": "mid", "alignment_high": "high"}  # the file of a term's network


@pytest.mark.parametrize("off", [None, *SWITCHES])
def test_a_term_of_weight_0_is_neither_computed_nor_built(
    off: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    judge = write_judge(tmp_path / "runs/digits/teacher/judge.safetensors")
    if off in FILES:
        judge.with_name(f"{FILES[off]}.safetensors").unlink()  # no term reads it
    built: list[TokenizerModule] = []

    def stop(self: cli.CommandLine) -> None:
        built.append(self.model)
        raise SystemExit(0)

    monkeypatch.setattr(cli.CommandLine, "before_fit", stop, raising=False)
    on = (f"--{BRANCH}.entropy_weight", "0.03", f"--{OBJECTIVE}.adversarial.start_step", "0")  # off in the preset
    switch = (f"--{SWITCHES[off]}", "0") if off else ()
    assert exit_code("fit", *digits("fq_triple", judge), *on, *switch) == 0

    (module,) = built
    module.objective.prepare(torch.device("cpu"))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    decoded, encoding = module(images)
    step = TokenizerStep(images, decoded, encoding, module.tokenizer.last_layer, 0)
    total, parts = module.objective(step)
    assert parts.keys() == SWITCHES.keys() - {off}
    assert total.isfinite()
    learned = {name for name, _ in module.objective.named_parameters()}
    for name, prefix in (("adversarial", ""), ("alignment_mid", "terms."), ("alignment_high", "terms.")):
        assert any(one.startswith(f"{prefix}{name}.") for one in learned) == (name != off), name
    assert len(module.configure_optimizers()) == (1 if off == "adversarial" else 2)
