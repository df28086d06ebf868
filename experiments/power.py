"""Power of an experiment: how many seeds decide an effect as large as the paper's.

A comparison is decided if the 95 % interval of its mean over the seeds excludes 0 (`experiments.directions`). The
number of seeds is the least for which this happens with a probability of 80 % if the effect is the paper's, by the
noncentral t distribution. All shares are of the value of the row that is compared with, since papers and digits have
other scales.
"""

from __future__ import annotations

from bisect import bisect_left
from math import sqrt

from scipy.special import nctdtr, stdtrit

from artifacts.results import RowComparison, Table
from experiments.directions import CONFIDENCE, margin_of

POWER = 0.8
MOST = 10_000
CAPTION = (
    "Seeds whose 95 % interval excludes 0 with a probability of 80 % if the effect is the paper's share; the noise "
    "floor is the deviation over seeds of the difference between both rows"
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
        needed = seeds_needed(effect, floor)
        counts = [str(one.seeds), f"> {MOST:,}" if needed is None else f"{needed:,}"]
        rows.append([one.row, one.against, one.label, *shares, *counts])
    return Table(HEAD, rows, CAPTION)


def noise_floor(one: RowComparison) -> float:
    """Sample deviation of the differences of a comparison, as a share of the row that is compared with."""
    assert one.margin is not None
    return one.margin / margin_of(1.0, one.seeds) / abs(one.base)


def seeds_needed(effect: float, floor: float) -> int | None:
    """The least number of seeds that decide an effect; both are shares of one value. None for more than 10,000."""
    if floor == 0:
        return 2
    counts = range(2, MOST + 1)
    index = bisect_left(counts, POWER, key=lambda count: chance(abs(effect) / floor, count))
    return counts[index] if index < len(counts) else None


def chance(size: float, count: int) -> float:
    """Probability that seeds decide an effect of ``size`` deviations with its own sign; it grows with ``count``."""
    return 1 - float(nctdtr(count - 1, size * sqrt(count), stdtrit(count - 1, (1 + CONFIDENCE) / 2)))
