"""Image with a grid of patches: the pointer's patch is reported, or patches are painted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import gradio as gr
import torch
from torch import Tensor

from commands.app.pictures import data_url, pixels

TEMPLATE = """
<div class="frame">
  <img src="${value.image}" alt="${value.alt}" draggable="false">
  <div class="cells" style="grid-template: repeat(${value.grid[0]}, 1fr) / repeat(${value.grid[1]}, 1fr)">
    ${Array.from({length: value.grid[0] * value.grid[1]}, (_, i) =>
      `<i data-patch="${i}"${value.chosen.includes(i) ? ' class="chosen"' : ''}></i>`).join('')}
  </div>
</div>
"""
STYLE = """
.frame { position: relative; max-width: 420px; }
.frame img { width: 100%; display: block; image-rendering: pixelated; }
.cells { position: absolute; inset: 0; display: grid; touch-action: ${mode === 'paint' ? 'none' : 'manipulation'}; }
.cells i { box-sizing: border-box; border: 1px solid rgb(128 128 128 / 25%); cursor: crosshair; }
.cells i:hover { border: 2px solid #f60; }
.cells i.chosen { background: rgb(255 102 0 / 45%); border-color: #f60; }
"""
SCRIPT = """
const patchAt = event => {
  const cell = document.elementFromPoint(event.clientX, event.clientY)?.closest('i[data-patch]');
  return cell && element.contains(cell) ? cell : null;
};
let waiting = null, last = null, adds = null;
const point = cell => {
  if (cell === null || cell.dataset.patch === last) return;
  last = cell.dataset.patch;
  clearTimeout(waiting);
  waiting = setTimeout(() => trigger('select', {patch: Number(last)}), 120);
};
const paint = cell => cell?.classList.toggle('chosen', adds);
element.addEventListener('pointerdown', event => {
  const cell = patchAt(event);
  if (cell === null) return;
  if (props.mode === 'point') { last = null; point(cell); return; }
  adds = !cell.classList.contains('chosen');
  paint(cell);
});
element.addEventListener('pointermove', event => {
  if (props.mode === 'point') point(patchAt(event));
  else if (adds !== null) paint(patchAt(event));
});
const finish = () => {
  if (adds === null) return;
  adds = null;
  const chosen = [...element.querySelectorAll('i.chosen')].map(cell => Number(cell.dataset.patch));
  props.value = {...props.value, chosen};
  trigger('input');
};
window.addEventListener('pointerup', finish);
window.addEventListener('pointercancel', finish);
"""


def patch_grid(value: dict[str, Any], mode: Literal["point", "paint"], label: str, elem_id: str) -> gr.HTML:
    """Component of an image under a grid, whose value is that of :func:`image_with_patches`.

    Args:
        value: at the start.
        mode: ``point``: its event `select` has the patch at the pointer; ``paint``: `input`, when patches were painted.
        label: above it.
        elem_id: in the page.
    """
    return gr.HTML(
        value,
        label=label,
        show_label=True,
        container=True,
        padding=True,
        html_template=TEMPLATE,
        css_template=STYLE,
        js_on_load=SCRIPT,
        elem_id=elem_id,
        mode=mode,
    )


def image_with_patches(
    image: Tensor, grid: tuple[int, int], chosen: Sequence[int] = (), alt: str = "image with its patches"
) -> dict[str, Any]:
    """Value of a :func:`patch_grid`: an image (1, 3, H, W) or (3, H, W) in [-1, 1], and the chosen patches."""
    return {"image": data_url(pixels(image)), "grid": [*grid], "chosen": [*chosen], "alt": alt}


def chosen_patches(value: dict[str, Any]) -> Tensor:
    """The chosen patches (h, w) bool of a :func:`patch_grid`; all of them if none is chosen."""
    height, width = value["grid"]
    found = torch.zeros(height * width, dtype=torch.bool)
    found[value["chosen"] or slice(None)] = True
    return found.view(height, width)
