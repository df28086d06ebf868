"""Names that rich, matplotlib, Markdown and encoders would read as markup are shown as they are."""

import pytest
from matplotlib.figure import Figure

from artifacts.display import for_markdown, printable, read_no_mathematics
from callbacks.measure.plots import new_plot, render
from commands.program import print_table

NAMES = ["[/INST]", "[b]", "[red", "$_{", "$x", "\\frac{", "a\nb", "\ud800", "<script>", ":smile:", "](http://x)"]


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
    assert render(plot).shape[2] == 3
    assert axes[0][0].get_title() == "\n".join(map(printable, name.split("\n")))
    assert any("mathdefault" in tick.get_text() for tick in axes[0][0].get_yticklabels()), "powers of ten stay"


def test_plain_figures_are_left_alone() -> None:
    read_no_mathematics(Figure())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("![x](http://x)", "!\\[x\\](http://x)"),
        ("a | b\nc", "a \\| b c"),
        ("`x` *y* \\", "\\`x\\` \\*y\\* \\\\"),
        ("\ud800", "\\ud800"),
    ],
)
def test_markdown(text: str, shown: str) -> None:
    assert for_markdown(text) == shown
