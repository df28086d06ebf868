from pathlib import Path

import pytest

from artifacts.results import Record
from experiments.ifsq_plot import ALPHA, PANELS, plot, read
from experiments.specification import load

ALPHAS = (1.0, 1.2, 1.6, 1.8, 2.0, 2.4)


def records(rows: list[tuple[str, int, str, float]]) -> list[Record]:
    names = ("row", "seed", "metric", "value")
    return [Record(experiment="ifsq/fig3", **dict(zip(names, row, strict=True))) for row in rows]


def test_every_seed_is_a_point_and_means_are_a_line(tmp_path: Path) -> None:
    rows = [
        (f"α = {alpha}{' (iFSQ)' if alpha == 1.6 else ''}", seed, metric, place + alpha + seed)
        for alpha in reversed(ALPHAS)
        for seed in (0, 1)
        for place, (metric, _, _) in enumerate(PANELS)
    ]
    picture = plot(read(records(rows)))
    for place, (axes, (_, title, _)) in enumerate(zip(picture.axes[: len(PANELS)], PANELS, strict=True)):
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert axes.get_title() == title and axes.get_xlabel() and axes.get_ylabel()
        assert tuple(lines["mean of the seeds"].get_xdata()) == ALPHAS
        assert lines["mean of the seeds"].get_ydata() == pytest.approx([place + alpha + 0.5 for alpha in ALPHAS])
        assert len(lines["a run"].get_xdata()) == 12
        assert ("N(0, 1) latents" in lines) == (place in (2, 3))
    ideal = {line.get_label(): line for line in picture.axes[2].get_lines()}["N(0, 1) latents"]
    assert ideal.get_ydata()[0] == pytest.approx(0.1174, abs=1e-3)
    picture.savefig(tmp_path / "fig3.png")
    assert (tmp_path / "fig3.png").stat().st_size > 10_000


def test_missing_metrics_are_drawn_as_empty_panels() -> None:
    picture = plot(read(records([("α = 1.6", 0, "val/psnr", 20.0)])))
    assert [text.get_text() for text in picture.axes[1].texts] == ["not measured"]


def test_results_of_another_table_are_rejected() -> None:
    with pytest.raises(ValueError, match="no row is labelled"):
        read(records([("plain", 0, "val/psnr", 20.0)]))


def test_the_experiment_has_the_labels_and_metrics_that_the_plot_reads() -> None:
    experiment = load("ifsq/fig3")
    alphas = [float(ALPHA.search(row.label)[1]) for row in experiment.rows]
    overrides = [row.stages[0].overrides for row in experiment.rows]
    assert alphas == [changes["model.init_args.tokenizer.init_args.quantizer.init_args.alpha"] for changes in overrides]
    assert tuple(alphas) == ALPHAS
    assert {metric.name for metric in experiment.metrics} >= {metric for metric, _, _ in PANELS}
