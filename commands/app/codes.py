"""Tab *Codes*: the codes of a patch, and the patches of the validation images with the same code."""

from __future__ import annotations

from typing import Any

import gradio as gr
from torch import Tensor

from commands.app import actions
from commands.app.actions import Neighbour, place_at
from commands.app.explored import Explored
from commands.app.parts import FIGURES, choose_image, first_image, said
from commands.app.patches import image_with_patches, patch_grid
from commands.app.pictures import SMALL, figures, framed, pixels

NEIGHBOURS = 12


def add(explored: Explored, page: gr.Blocks) -> None:
    """Add the tab."""
    tokenizer = explored.tokenizer
    spec, size, grid = tokenizer.require_codes(), tokenizer.image_size, tokenizer.grid
    heads = [f"{height} × {width}" for height, width in spec.scales]

    def point(event: gr.EventData) -> int:
        return int(event.patch)

    def look(image: Tensor, patch: int, sub_code: int, scale: int) -> tuple[str, str]:
        encoding = actions.encode(tokenizer, image)
        assert encoding.codes is not None
        codes, (row, column) = encoding.codes[0], divmod(patch, grid[1])
        places = [place_at(spec, i, (column + 0.5) / grid[1], (row + 0.5) / grid[0]) for i in range(len(heads))]
        rows = [codes[:, place.position(spec)].tolist() for place in places]
        text = f"**Patch in row {row}, column {column}**\n\n{_table(heads, rows)}"
        if explored.codes is None:
            return text, ""
        count, found = explored.codes.nearest(encoding, spec, sub_code, places[scale], NEIGHBOURS)
        height, width = spec.scales[scale]
        text += (
            f"\n\nSub-code {sub_code} is {rows[scale][sub_code]} in {count:,} of the "
            f"{len(explored.images) * height * width:,} patches of {len(explored.images):,} validation images."
        )
        shown = [(outlined(one), explored.labels[one.image]) for one in found]
        return text, figures(shown, "validation image with the patch")

    def outlined(one: Neighbour) -> Any:
        return framed(pixels(explored.image(one.image), SMALL), one.place.box(spec, size), size)

    with gr.Tab("Codes"):
        gr.Markdown("Point at a patch, or touch it.")
        patch = gr.State(0)
        with gr.Row():
            with gr.Column(min_width=260):
                grid_shown = image_with_patches(first_image(explored), grid, [0])
                image = patch_grid(grid_shown, "point", "image with its patches", "pointed")
                choice = choose_image(explored)
            with gr.Column(min_width=260):
                said_codes = gr.Markdown(elem_id="codes")
                sub_code = gr.Radio(
                    [(name, index) for index, name in enumerate(explored.subspace_names())],
                    value=0,
                    label="sub-code that is compared",
                    visible=spec.num_sub_codes > 1,
                )
                scale = gr.Dropdown(
                    [(head, index) for index, head in enumerate(heads)],
                    value=len(heads) - 1,
                    label="scale that is compared",
                    visible=len(heads) > 1,
                )
        nearest = gr.HTML(
            label="nearest patches with the same code",
            elem_id="nearest",
            visible=explored.codes is not None,
            **FIGURES,
        )
        inputs, outputs = [choice.image, patch, sub_code, scale], [said_codes, nearest]

        def mark(picture: Tensor, at: int) -> dict[str, Any]:
            return image_with_patches(picture, grid, [at])

        image.select(point, None, patch, trigger_mode="always_last", show_progress="hidden").then(
            mark, [choice.image, patch], image, show_progress="hidden"
        ).then(said(look), inputs, outputs, show_progress="hidden")
        choice.then(mark, [choice.image, patch], [image])
        choice.then(look, inputs, outputs)
        for component in (sub_code, scale):
            component.change(said(look), inputs, outputs, show_progress="minimal")
    page.load(said(look), inputs, outputs, show_progress="minimal")


def _table(heads: list[str], rows: list[list[int]]) -> str:
    """Markdown table of the codes of a patch: a row a scale, a column a sub-code."""
    names = [f"sub-code {i}" for i in range(len(rows[0]))]
    lines = [
        ["grid", *names],
        ["---"] * (1 + len(names)),
        *([head, *map(str, row)] for head, row in zip(heads, rows, strict=True)),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
