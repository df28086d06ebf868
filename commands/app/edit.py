"""Tab *Edit*: an image takes sub-codes, or a painted region of them, from another one."""

from __future__ import annotations

from typing import Any

import gradio as gr
from torch import Tensor

from commands.app import actions
from commands.app.explored import Explored
from commands.app.parts import FIGURES, PICTURE, choose_image, first_image, said
from commands.app.patches import chosen_patches, image_with_patches, patch_grid
from commands.app.pictures import SMALL, figures, pixels

MOST_ALONE = 8  # sub-codes that are also taken one by one


def add(explored: Explored, page: gr.Blocks) -> None:
    """Add the tab."""
    tokenizer, names = explored.tokenizer, explored.subspace_names()
    grid, everything = tokenizer.grid, range(len(names))
    compared: dict[str, list[int]] = {"none": []}
    compared |= {f"sub-code {i}": [i] for i in everything[:MOST_ALONE]}
    compared |= {"all": [*everything]} if len(names) > 1 else {}

    def edit(image: Tensor, other: Tensor, taken: list[int], painted: dict[str, Any]) -> tuple[Any, str]:
        edited, *others = actions.edit(tokenizer, image, other, [taken, *compared.values()], chosen_patches(painted))
        alone = [(pixels(one, SMALL), name) for one, name in zip(others, compared, strict=True)]
        return pixels(edited), figures(alone, "A with sub-codes of B")

    def repaint(image: Tensor, painted: dict[str, Any]) -> dict[str, Any]:
        return image_with_patches(image, grid, painted["chosen"])

    def clear(painted: dict[str, Any]) -> dict[str, Any]:
        return {**painted, "chosen": []}

    with gr.Tab("Edit"):
        gr.Markdown("A takes sub-codes of B: everywhere, or in the patches that are painted on A.")
        with gr.Row():
            with gr.Column(min_width=260):
                painted = patch_grid(
                    image_with_patches(first_image(explored), grid), "paint", "A: paint patches", "painted"
                )
                reset = gr.Button("Clear the region", size="sm")
                first = choose_image(explored, "A: ")
            with gr.Column(min_width=260):
                shown = gr.Image(pixels(first_image(explored, 1)), label="B", **PICTURE)
                second = choose_image(explored, "B: ", 1, shown)
            with gr.Column(min_width=260):
                result = gr.Image(label="A, edited", elem_id="edited", **PICTURE)
                taken = gr.CheckboxGroup(
                    [(name, index) for index, name in enumerate(names)], value=[0], label="sub-codes of B that A takes"
                )
        alone = gr.HTML(label="A with these sub-codes of B", elem_id="alone", **FIGURES)
        inputs, outputs = [first.image, second.image, taken, painted], [result, alone]
        first.then(repaint, [first.image, painted], [painted])
        for choice in (first, second):
            choice.then(edit, inputs, outputs)
        taken.change(said(edit), inputs, outputs, show_progress="minimal")
        painted.input(said(edit), inputs, outputs, show_progress="minimal")
        reset.click(clear, painted, painted).then(said(edit), inputs, outputs, show_progress="minimal")
    page.load(said(edit), inputs, outputs, show_progress="minimal")
