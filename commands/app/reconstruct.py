"""Tab *Reconstruct*: an image through the tokenizer, with each subspace on or off."""

from __future__ import annotations

from typing import Any

import gradio as gr
from torch import Tensor

from commands.app import actions
from commands.app.explored import Explored
from commands.app.parts import PICTURE, choose_image, first_image, said
from commands.app.pictures import pixels


def add(explored: Explored, page: gr.Blocks) -> None:
    """Add the tab."""
    tokenizer = explored.tokenizer
    names = explored.subspace_names()

    def reconstruct(image: Tensor, kept: list[int]) -> tuple[Any, str]:
        found = actions.reconstruct(tokenizer, image, kept)
        return pixels(found.image), f"**PSNR {found.psnr:.2f} dB**"

    with gr.Tab("Reconstruct"):
        with gr.Row():
            original = gr.Image(pixels(first_image(explored)), label="original", **PICTURE)
            restored = gr.Image(label="reconstruction", elem_id="restored", **PICTURE)
        said_psnr = gr.Markdown(elem_id="psnr")
        choice = choose_image(explored, shown=original)
        kept = gr.CheckboxGroup(
            [(name, index) for index, name in enumerate(names)],
            value=[*range(len(names))],
            label="subspaces; one that is off is zero",
            elem_id="kept",
            visible=len(names) > 1,
        )
        inputs, outputs = [choice.image, kept], [restored, said_psnr]
        choice.then(reconstruct, inputs, outputs)
        kept.change(said(reconstruct), inputs, outputs, api_name="reconstruct")
    page.load(said(reconstruct), inputs, outputs, show_progress="minimal")
