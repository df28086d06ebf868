"""Results of an experiment: `runs/experiments/results/<paper>/<table>_<preset>.json`."""

from __future__ import annotations

import msgspec

NOTHING = "—"  # a missing value in a Table


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one row with one seed.

    Args:
        experiment: `<paper>/<table>`.
        row: Label of the row.
        seed: Seed of all its stages.
        metric: Name, which may hold a pattern as in the experiment's file.
        value: A finite number.
        n: Number of images, if known.
        protocol: How it was measured, if known.
        run: Directory of the stage that measured it.
        commit: Commit of the code, if known.
        machine: System, cores and GPUs, if known.
    """

    experiment: str
    row: str
    seed: int
    metric: str
    value: float
    n: int | None = None
    protocol: str | None = None
    run: str = ""
    commit: str | None = None
    machine: str | None = None


class RowComparison(msgspec.Struct, frozen=True):
    """Difference between two rows in one metric.

    Args:
        row: Label of the row.
        against: Label of the nearest row above that the paper also reports.
        metric: Name of our metric.
        label: Head of its column.
        seeds: Number of seeds that both rows have.
        difference: Mean over the seeds of the row's value minus the other's.
        margin: Half the width of Student's 95 % interval of that mean; None for one seed.
        paper: The paper's difference.
        verdict: `holds`, `fails`, `within noise` or `one seed`.
        base: Mean over the seeds of the other row's value.
        paper_base: The paper's value of the other row.
    """

    row: str
    against: str
    metric: str
    label: str
    seeds: int
    difference: float
    margin: float | None
    paper: float
    verdict: str
    base: float = 0.0
    paper_base: float = 0.0


class Table(msgspec.Struct, frozen=True):
    """Head and rows of text; the first column names the row, the caption the table."""

    head: list[str]
    rows: list[list[str]]
    caption: str = ""


class Results(msgspec.Struct, frozen=True):
    """Records of an experiment at a preset, and the tables made of them."""

    experiment: str
    title: str
    preset: str
    tables: list[Table]
    comparisons: list[RowComparison]
    records: list[Record]
