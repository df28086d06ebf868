"""Tabs and settings of the page for each kind of run, without a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the extra app is not in requirements.lock (docs/app.md)")

from commands.app.explored import Explored
from commands.app.generate import categorical_settings, flow_settings, labels_of
from commands.app.page import build
from commands.app.parts import said
from commands.app.patches import chosen_patches
from polytoken.errors import UserError
from polytoken.sampling import CategoricalSampler, FlowSampler
from tests.support.generated import CONTINUOUS, SCALAR, write_latent_runs, write_next_scale_runs, write_runs


def components(explored: Explored, kind: str) -> list[dict[str, Any]]:
    return [one["props"] for one in build(explored).config["components"] if one["type"] == kind]


def tabs(explored: Explored) -> list[str]:
    return [props["label"] for props in components(explored, "tabitem")]


def test_tabs_that_do_not_apply_are_left_out(tmp_path: Path) -> None:
    codes = write_runs(tmp_path / "codes")
    flow = write_latent_runs(tmp_path / "flow", CONTINUOUS)
    scalar = write_latent_runs(tmp_path / "scalar", SCALAR)
    scales = write_next_scale_runs(tmp_path / "scales")
    assert tabs(Explored.load(tmp_path / "codes/tokenizer/tiny")) == ["Reconstruct", "Edit", "Codes"]
    assert tabs(Explored.load(tmp_path / "flow/tokenizer/tiny")) == ["Reconstruct"]
    assert tabs(Explored.load(None, flow)) == ["Reconstruct", "Generate"]
    for run in (codes, scalar, scales):
        assert tabs(Explored.load(None, run)) == ["Reconstruct", "Edit", "Codes", "Generate"]


def test_each_family_shows_its_own_settings(tmp_path: Path) -> None:
    flow = Explored.load(None, write_latent_runs(tmp_path / "flow", SCALAR))
    assert {"guidance", "steps", "shift"} <= {props["label"] for props in components(flow, "number")}
    codes = Explored.load(None, write_runs(tmp_path / "codes", num_subspaces=1))
    assert {"guidance", "temperature", "top-k of 16", "top-p"} <= {one["label"] for one in components(codes, "number")}
    several = Explored.load(None, write_next_scale_runs(tmp_path / "scales"))
    labels = [props["label"] for props in components(several, "number")]
    assert {"sub-code 0: guidance", "sub-code 1: guidance"} <= {*labels} and labels.count("temperature") == 2


def test_settings_are_rules_of_the_sampler(tmp_path: Path) -> None:
    import gradio as gr

    pipeline = Explored.load(None, write_runs(tmp_path)).pipeline
    assert pipeline is not None
    with gr.Blocks():
        codes, flow = categorical_settings(pipeline), flow_settings()
    assert codes.sampler(3, 0.5, 4, 0.9, 1, 1, 16, 1, "interval", 0.1, 0.8) == CategoricalSampler(
        [3, 1], "interval", (0.1, 0.8), [0.5, 1], [4, 16], [0.9, 1]
    )
    assert flow.sampler(3, "heun", 9, 0.5, 0, True, "linear", 0, 1) == FlowSampler(
        3, "linear", (0, 1), "heun", 9, 0.5, None, True
    )
    for settings in (codes, flow):
        pipeline_rules = settings.sampler(*(component.value for component in settings.components))
        assert pipeline_rules.guidance in (2.0, [2.0, 2.0])
    assert labels_of(pipeline, "3", 2) == [3, 3] and labels_of(pipeline, "each class in turn", 12)[-3:] == [9, 0, 1]


def test_no_painted_patch_means_all() -> None:
    value = {"grid": [2, 2], "chosen": []}
    assert chosen_patches(value).all()
    assert chosen_patches({**value, "chosen": [1]}).tolist() == [[False, True], [False, False]]


def test_mistakes_are_messages_of_the_page() -> None:
    import gradio as gr

    def wrong() -> None:
        raise UserError("temperature is 0: it must be positive")

    with pytest.raises(gr.Error, match="must be positive"):
        said(wrong)()
