"""Parts that the tabs share: choice of an image, and messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
import torch
from gradio.events import Dependency

from commands.app.explored import Explored
from commands.app.pictures import pixels
from polytoken.errors import UserError
from polytoken.images import read_image

P = ParamSpec("P")
R = TypeVar("R")
# PNG: the default is lossy
PICTURE: dict[str, Any] = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}
FIGURES: dict[str, Any] = {"show_label": True, "container": True, "padding": True, "js_on_load": None}


def said(action: Callable[P, R]) -> Callable[P, R]:
    """Show a `UserError` of an action as a message of the page."""

    @wraps(action)
    def shown(*given: P.args, **named: P.kwargs) -> R:
        try:
            return action(*given, **named)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return shown


@dataclass(frozen=True)
class Choice:
    """Components by which an image is chosen.

    Args:
        image: state: (1, 3, H, W) in [-1, 1], as the tokenizer reads it.
        events: change the image when they are done.
    """

    image: gr.State
    events: tuple[Dependency, ...]

    def then(self, action: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
        """Run an action whenever the image has changed."""
        for event in self.events:
            event.then(said(action), inputs, outputs, show_progress="minimal")


def choose_image(explored: Explored, name: str = "", row: int = 0, shown: gr.Image | None = None) -> Choice:
    """Add an upload, and a slider over the validation images.

    Args:
        explored: tokenizer and images.
        name: of the image, before each label.
        row: validation image at the start.
        shown: where the chosen image appears.
    """
    size, count = explored.tokenizer.image_size, len(explored.images)
    image = gr.State(first_image(explored, row))
    outputs = [image] if shown is None else [image, shown]

    def given(chosen: torch.Tensor) -> Any:
        return chosen if shown is None else (chosen, pixels(chosen))

    def uploaded(path: str) -> Any:
        try:
            return given(read_image(path, size))
        except UserError as error:
            raise UserError(str(error).replace(path, Path(path).name)) from error

    def picked(number: float) -> Any:
        return given(explored.image(min(max(int(number), 0), count - 1)))

    with gr.Column(min_width=0):
        events = []
        if count > 1:
            slider = gr.Slider(0, count - 1, row, step=1, label=f"{name}validation image")
            events.append(
                slider.change(said(picked), slider, outputs, trigger_mode="always_last", show_progress="hidden")
            )
        button = gr.UploadButton(f"{name}own image", file_types=["image"], size="sm")
        events.append(button.upload(said(uploaded), button, outputs, show_progress="hidden"))
    return Choice(image, tuple(events))


def first_image(explored: Explored, row: int = 0) -> torch.Tensor:
    """A validation image, or without these a grey one."""
    size = explored.tokenizer.image_size
    return explored.image(row % len(explored.images)) if len(explored.images) else torch.zeros(1, 3, size, size)
