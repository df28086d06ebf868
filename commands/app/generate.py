"""Tab *Generate*: images of a class, by the rules of the generator's sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from commands.app import actions
from commands.app.explored import Explored
from commands.app.parts import FIGURES, said
from commands.app.pictures import SMALL, enlarged, figures
from polytoken.errors import UserError
from polytoken.pipeline import GenerationPipeline
from polytoken.sampling import CategoricalSampler, FlowSampler, Guidance
from polytoken.specs import TokenSpec

COUNTS = (1, 4, 9, 16, 25)
EACH = "each class in turn"
SCHEDULES = ("constant", "linear", "interval")


@dataclass(frozen=True)
class Settings:
    """Components of the settings of a sampler, and the sampler of their values."""

    components: list[Any]
    sampler: Callable[..., Guidance]


def add(explored: Explored, pipeline: GenerationPipeline) -> None:
    """Add the tab."""

    def generate(name: str, count: int, seed: float, *values: Any) -> tuple[str, str]:
        if seed is None or None in values:
            raise UserError("a field is empty: give a number")
        rules = pipeline.rules(settings.sampler(*values))
        labels = labels_of(pipeline, name, count)
        drawn = actions.generate(pipeline, labels, rules, int(seed))
        images = [enlarged(image.numpy(), SMALL) for image in drawn.images]
        names = [pipeline.class_names[label] for label in labels]
        return figures(zip(images, names, strict=True), "sample"), (
            f"{count} images in {drawn.seconds:.2f} s · {drawn.steps} steps · "
            f"**{1000 * drawn.seconds / drawn.steps:.0f} ms a step**"
        )

    with gr.Tab("Generate"):
        with gr.Row():
            chosen = gr.Dropdown([EACH, *pipeline.class_names], value=EACH, label="class", min_width=200)
            count = gr.Dropdown(list(COUNTS), value=COUNTS[2], label="images")
            seed = gr.Number(0, label="seed", precision=0)
        flow = issubclass(pipeline.network.sampler_type, FlowSampler)
        settings = flow_settings() if flow else categorical_settings(pipeline)
        button = gr.Button("Generate", variant="primary", elem_id="generate")
        time = gr.Markdown(elem_id="time")
        samples = gr.HTML(label="samples", elem_id="samples", **FIGURES)
        button.click(said(generate), [chosen, count, seed, *settings.components], [samples, time], api_name="generate")


def labels_of(pipeline: GenerationPipeline, name: str, count: int) -> list[int]:
    """Labels of ``count`` images of a class, or of each class in turn."""
    if name == EACH:
        return [index % pipeline.num_classes for index in range(count)]
    return [pipeline.class_names.index(name)] * count


def _guidance_schedule() -> list[Any]:
    with gr.Row():
        schedule = gr.Dropdown(list(SCHEDULES), value="constant", label="guidance schedule")
        start = gr.Number(0.0, label="interval from", step=0.05)
        end = gr.Number(1.0, label="to", step=0.05)
    return [schedule, start, end]


def categorical_settings(pipeline: GenerationPipeline) -> Settings:
    """Settings of a generator of codes: each of them for each sub-code."""
    spec = pipeline.network.spec
    assert isinstance(spec, TokenSpec)
    columns: list[list[Any]] = []
    for sub_code, size in zip(pipeline.sub_codes, spec.codebook_sizes, strict=True):
        with gr.Group(), gr.Row():
            name = f"sub-code {sub_code}: " if len(pipeline.sub_codes) > 1 else ""
            guidance = gr.Number(2.0, label=f"{name}guidance", step=0.25, min_width=130)
            temperature = gr.Number(1.0, label="temperature", step=0.05, min_width=130)
            top_k = gr.Number(size, label=f"top-k of {size:,}", precision=0, min_width=130)
            top_p = gr.Number(1.0, label="top-p", step=0.05, min_width=130)
        columns.append([guidance, temperature, top_k, top_p])
    with gr.Accordion("Guidance over the steps", open=False):
        schedule = _guidance_schedule()

    def sampler(*values: Any) -> Guidance:
        *rules, kind, start, end = values
        guidance, temperature, top_k, top_p = (list(rules[i::4]) for i in range(4))
        top_k = [int(value) for value in top_k]
        return CategoricalSampler(guidance, kind, (start, end), temperature, top_k, top_p)

    return Settings([*(component for column in columns for component in column), *schedule], sampler)


def flow_settings() -> Settings:
    """Settings of a generator of latents."""
    with gr.Row():
        guidance = gr.Number(2.0, label="guidance", step=0.25, min_width=130)
        method = gr.Dropdown(["euler", "heun"], value="euler", label="method", min_width=130)
        steps = gr.Number(25, label="steps", precision=0, min_width=130)
        shift = gr.Number(1.0, label="shift", step=0.1, min_width=130)
    with gr.Row():
        channels = gr.Number(0, label="guided channels (0: all)", precision=0, min_width=130)
        snap = gr.Checkbox(False, label="snap latents to the quantizer's points", min_width=130)
    with gr.Accordion("Guidance over the steps", open=False):
        schedule = _guidance_schedule()

    def sampler(*values: Any) -> Guidance:
        scale, how, count, moved, guided, snapped, kind, start, end = values
        return FlowSampler(scale, kind, (start, end), how, int(count), moved, int(guided) or None, snapped)

    return Settings([guidance, method, steps, shift, channels, snap, *schedule], sampler)
