"""Usage of each codebook, over the validation set and over the last training steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
from torch import Tensor

from callbacks.measure.measurement import Measurement
from callbacks.measure.plots import logged_step, new_plot, publish, render, tensorboard_writers
from polytoken.errors import UserError
from polytoken.metrics.codebook import CodebookMetrics, CodebookStatistics, JointCodeStatistics, RecentUsage
from polytoken.specs import Encoding

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CodebookUsage(Measurement):
    """Counts codes; a continuous bottleneck has none.

    Logs over the whole set, for codebook i, ``usage/i`` (share of codes seen), ``perplexity/i`` (2^H, at most K) and
    ``dead/i`` (codes never seen). For the tuples that several sub-codes form at a position, ``usage/joint`` is the
    number of distinct tuples divided by the number of *positions*, and ``perplexity/joint`` their 2^H. Writes
    ``usage.png``, the use of each code in descending order with 1 for uniform use, and the same histogram to
    TensorBoard. During training, ``train/usage/i`` is the share over the last steps.

    Args:
        window: training batches per rank that ``train/usage`` covers; it is logged from that many batches after the
            start or a resume.
    """

    def __init__(self, window: int = 100) -> None:
        if window < 1:
            raise UserError(f"CodebookUsage: window is {window}; it must be at least 1.")
        self.window = window
        self._recent: RecentUsage | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        spec = pl_module.tokenizer.spec
        self._recent = RecentUsage(spec.codebook_sizes, self.window, pl_module.device) if spec else None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the codes that the training step returned, and log their share."""
        if self._recent is None or not outputs:
            return
        self._recent.update(outputs["codes"])
        # Lightning writes its log after these batches only
        every = trainer.log_every_n_steps
        time = every > 0 and (trainer.fit_loop.total_batch_idx + 1) % every == 0
        if time and self._recent.steps >= self.window:
            for index, share in enumerate(self._recent.compute()):
                pl_module.log(f"train/usage/{index}", share, rank_zero_only=True)

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        spec = pl_module.tokenizer.spec
        self._statistics = CodebookStatistics(spec.codebook_sizes).to(pl_module.device) if spec else None
        joint = spec is not None and spec.num_sub_codes > 1
        self._joint = JointCodeStatistics(spec.codebook_sizes, pl_module.device) if joint else None
        self._found: CodebookMetrics | None = None

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        if self._statistics is not None and encoding.codes is not None:
            self._statistics.update(encoding.codes)
            if self._joint is not None:
                self._joint.update(encoding.codes)

    def results(self) -> dict[str, float]:
        if self._statistics is None:
            return {}
        self._found = found = self._statistics.compute()
        named = {"usage": found.usage, "perplexity": found.perplexity, "dead": found.dead}
        results = {
            f"{name}/{index}": float(value) for name, values in named.items() for index, value in enumerate(values)
        }
        if self._joint is not None:
            results["usage/joint"], results["perplexity/joint"] = self._joint.compute()
        return results

    def draw(self, trainer: pl.Trainer) -> None:
        """Write the plot and the histograms."""
        if self._found is None:
            return
        uses = [
            (counts.double() * len(counts) / counts.sum().clamp_min(1)).cpu().numpy() for counts in self._found.counts
        ]
        plot, axes = new_plot(columns=len(uses), size=4)
        for index, panel in enumerate(axes[0]):
            draw_uses(panel, uses[index])
            panel.set_title(
                f"codebook {index}: {self._found.usage[index]:.1%} of {len(uses[index]):,} codes used\n"
                f"perplexity {self._found.perplexity[index]:,.1f}, {self._found.dead[index]:,} dead",
                fontsize=10,
            )
        publish(trainer, "usage", render(plot))
        for writer in tensorboard_writers(trainer):
            for index, relative in enumerate(uses):
                writer.add_histogram(f"code_use/{index}", relative, logged_step(trainer))


def draw_uses(axes: Axes, uses: np.ndarray) -> None:
    """Draw the use of each code of a codebook, in descending order on a logarithmic axis.

    Args:
        axes: the panel.
        uses: (K,), 1 for uniform use; codes of 0 are dead and drawn grey.
    """
    from matplotlib.ticker import MaxNLocator

    size = len(uses)
    used = np.sort(uses[uses > 0])[::-1]
    lowest, highest = min([0.1, *used[-1:] / 2]), max([10.0, *used[:1] * 2])
    axes.stairs(used, np.arange(len(used) + 1), baseline=lowest, fill=True)
    if len(used) < size:
        axes.axvspan(len(used), size, color="0.85", label="dead")
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="uniform use")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set(xlim=(0, size), ylim=(lowest, highest), xlabel="codes, most used first", ylabel="uses / mean uses")
    axes.legend(loc="upper right", fontsize=8)
