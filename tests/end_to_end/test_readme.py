"""README and `make help`: links, targets, order of the stages."""

import re
from pathlib import Path

from tests.support.commands import REPOSITORY, make

README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_help_explains_every_target() -> None:
    text = make("help")
    explained = set(re.findall(r"^  ([a-z0-9-]+) |make (help) explains", text, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert phony and {name or help_ for name, help_ in explained} == set(phony.group(1).split())


def test_demo_runs_the_stages_in_order() -> None:
    """Each stage follows its prerequisites, and `make demo` needs to name only the last."""
    stages = ("judge", "fq_dual", "tokens", "stage1", "stage2", "sample")
    plan = make("-n", "-B", "demo")
    places = [plan.index(f"--config configs/{stage}.yaml") for stage in stages]
    places += [plan.index(f"-m commands.{command}") for command in ("evaluate", "report")]
    assert places == sorted(places)
    assert "--model.init_from 'runs/digits/stage1/fq_dual'" in plan
    photos = make("-n", "-B", "demo", "PRESET=photos")
    assert "presets/photos/tokenizer.yaml" in photos and "--preset photos" in photos and "digits" not in photos


def test_args_apply_to_the_named_target_only() -> None:
    plan = make("-n", "-B", "stage2", "ARGS=--trainer.max_steps 7").splitlines()
    assert [line.count("--trainer.max_steps 7") for line in plan if "configs/stage" in line] == [0, 1]


def test_a_baseline_has_its_own_directories() -> None:
    plan = make("-n", "-B", "evaluate", "GENERATOR=llamagen", "TOKENIZER=vq")
    assert "--config configs/llamagen.yaml" in plan and "--data.store runs/digits/tokens/vq" in plan
    assert "--samples 'runs/digits/samples/vq_llamagen/samples.npz'" in plan and "stage2" not in plan
    assert "--samples 'there/any.npz'" in make("-n", "-B", "-o", "there/any.npz", "evaluate", "SAMPLES=there/any.npz")


def test_samples_are_measured_again_with_other_arguments(tmp_path: Path) -> None:
    for name in ("any.npz", "any_metrics.json"):
        (tmp_path / name).touch()
    given = ("-n", "-o", ".venv/.ready", "evaluate", "PRESET=imagenet", f"SAMPLES={tmp_path / 'any.npz'}")
    assert "commands.evaluate" not in make(*given)
    assert "--reference other.npz" in make(*given, "ARGS=--reference other.npz")
