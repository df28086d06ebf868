"""Names that rich, matplotlib, Markdown and encoders would read as markup are shown as they are."""

import re
from html import unescape

import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from artifacts.display import for_markdown, printable
from callbacks.measure.plots import new_plot, render
from commands.program import print_table

NAMES = [
    "[/INST]",
    "[b]",
    "[red",
    "$_{",
    "$x",
    "$x^2$",
    "$_{$",
    "$\\mathdefault{$",
    "*x*",
    "`x`",
    "a | b",
    "\\frac{",
    "a\nb",
    "\ud800",
    "<script>",
    ":smile:",
    "](http://x)",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_shows_names_as_they_are(name: str, capsys: pytest.CaptureFixture) -> None:
    print_table(printable(name), [printable(name)], [[printable(name)]], [printable(name)])
    assert capsys.readouterr().out.count(printable(name)) == 4


@pytest.mark.parametrize("name", NAMES)
def test_plots_show_names_as_they_are(name: str) -> None:
    plot, axes = new_plot(1)
    axes[0][0].plot([1, 10], [1, 100], label=name)
    axes[0][0].set(title=name, xlabel=name, yscale="log")
    axes[0][0].legend()
    plot.suptitle(name)
    render(plot)
    shown = "\n".join(map(printable, name.split("\n")))
    texts = [text for text in plot.findobj(Text) if text.get_text() == shown]
    assert len(texts) == 4 and not any(text.get_parse_math() for text in texts)
    powers = [tick.get_parse_math() for tick in axes[0][0].get_yticklabels() if "mathdefault" in tick.get_text()]
    assert powers and all(powers), "powers of ten stay"


def test_plain_titles_are_drawn_as_before() -> None:
    plot = Figure(figsize=(2, 1))
    plot.suptitle("PSNR, dB\nof two runs")
    canvas = FigureCanvasAgg(plot)
    canvas.draw()
    before = np.array(canvas.buffer_rgba())
    assert len(np.unique(before)) > 2
    assert np.array_equal(render(plot), before[..., :3])


@pytest.mark.parametrize("name", [*NAMES, "_a_", "__b__ fq_dual"])
def test_markdown_shows_names_as_they_are(name: str) -> None:
    page = MarkdownIt().render(for_markdown(name))
    assert unescape(page) == f"<p>{printable(' '.join(name.split()))}</p>\n"
    assert re.findall("<[^>]*>", page) == ["<p>", "</p>"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("![x](http://x)", "!\\[x\\](http://x)"),
        ("a | b\nc", "a \\| b c"),
        ("fq_dual _a_ __b__", "fq_dual \\_a\\_ \\_\\_b\\_\\_"),
        ("`x` *y* \\", "\\`x\\` \\*y\\* \\\\"),
        ("\ud800", "\\ud800"),
    ],
)
def test_markdown(text: str, shown: str) -> None:
    assert for_markdown(text) == shown
