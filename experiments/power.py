"""Power of an experiment: how many seeds show an effect as large as the paper's.

An effect shows at 2 standard deviations if it is at least twice the deviation of its mean over n seeds, floor / √n. All
shares are of the value of the row that is compared with: papers and digits have other scales.
"""

from __future__ import annotations

from math import ceil

from artifacts.results import RowComparison, Table
from experiments.directions import margin_of

DEVIATIONS = 2
CAPTION = (
    "Seeds that show an effect of the paper's relative size at 2 standard deviations; the noise floor is the deviation "
    "over seeds of the difference between both rows"
)
HEAD = ["", "against", "of", "paper's effect", "ours", "noise floor", "seeds run", "seeds needed"]


def power(comparisons: list[RowComparison]) -> Table:
    """A line for each comparison that has a noise floor; empty before two seeds are done."""
    rows = []
    for one in comparisons:
        if one.margin is None or not one.base or not one.paper_base:
            continue
        effect, floor = one.paper / one.paper_base, noise_floor(one)
        shares = [f"{effect:+.1%}", f"{one.difference / one.base:+.1%}", f"{floor:.1%}"]
        rows.append([one.row, one.against, one.label, *shares, str(one.seeds), f"{seeds_needed(effect, floor):,}"])
    return Table(HEAD, rows, CAPTION)


def noise_floor(one: RowComparison) -> float:
    """Sample deviation of the differences of a comparison, as a share of the row that is compared with."""
    assert one.margin is not None
    return one.margin / margin_of(1.0, one.seeds) / abs(one.base)


def seeds_needed(effect: float, floor: float) -> int:
    """The least number of seeds, at least 2, whose mean shows an effect; both are shares of one value."""
    return max(2, ceil((DEVIATIONS * floor / effect) ** 2))
