"""Names of logged metrics for readers: title, unit, direction, and the group that they belong to."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

UP, DOWN = "↑", "↓"
QUALITY, CODES, LIKELIHOOD, OTHER = "Images", "Codes", "Likelihood", "Others"
GROUPS = (QUALITY, CODES, LIKELIHOOD, OTHER)


@dataclass(frozen=True)
class Name:
    """A metric, or all metrics whose name matches a pattern.

    Args:
        pattern: regular expression of the name without `val/`.
        title: in words, with the groups of the pattern.
        group: one of `GROUPS`.
        better: an arrow; empty where neither direction is better.
        form: format of the value.
        unit: unit of the value.
        detail: of interest for few readers: the report folds it, and the summary of a run omits it.
    """

    pattern: str
    title: str
    group: str
    better: str = ""
    form: str = "{:.4g}"
    unit: str = ""
    detail: bool = False

    @property
    def head(self) -> str:
        """Title, unit and arrow."""
        words = self.title + (f", {self.unit}" if self.unit else "")
        return words + (f"\N{NO-BREAK SPACE}{self.better}" if self.better else "")

    def text(self, value: float | None) -> str:
        """The value without unit; a dash for None."""
        return "–" if value is None else self.form.format(value)


NAMES = (
    Name("psnr", "PSNR", QUALITY, UP, "{:.2f}", "dB"),
    Name("ssim", "SSIM", QUALITY, UP, "{:.3f}"),
    Name(r"lpips/(\w+)", "LPIPS by {}", QUALITY, DOWN, "{:.3f}"),
    Name(r"rfid/(\w+)", "rFID by {}", QUALITY, DOWN, "{:.2f}"),
    Name(r"rsfid/(\w+)", "rsFID by {}", QUALITY, DOWN, "{:.2f}"),
    Name(r"rfd/(\w+)", "Fréchet distance by {}", QUALITY, DOWN, "{:.3f}"),
    Name(r"pfid/(\w+)", "pFID by {}", QUALITY, DOWN, "{:.2f}"),
    Name(r"psfid/(\w+)", "psFID by {}", QUALITY, DOWN, "{:.2f}"),
    Name(r"pfd/(\w+)", "Fréchet distance of perturbed codes by {}", QUALITY, DOWN, "{:.3f}"),
    Name(r"pis/(\w+)", "score of perturbed codes by {}", QUALITY, UP, "{:.2f}"),
    Name(r"(?!judge)(\w+)_accuracy_originals", "originals recognised by {}", QUALITY, form="{:.1%}"),
    Name("judge_accuracy_originals", "originals recognised", QUALITY, form="{:.1%}"),
    Name("judge_accuracy", "reconstructions recognised", QUALITY, UP, "{:.1%}"),
    Name(r"(\w+)_accuracy", "reconstructions recognised by {}", QUALITY, UP, "{:.1%}"),
    Name(r"ris/(\w+)_originals", "score of originals by {}", QUALITY, form="{:.2f}"),
    Name(r"ris/(\w+)", "score of reconstructions by {}", QUALITY, UP, "{:.2f}"),
    Name("psnr_painted", "PSNR of patches in their mean colour", QUALITY, form="{:.2f}", unit="dB"),
    Name(r"scales/psnr_(\d+)", "PSNR from scales up to {}", QUALITY, UP, "{:.2f}", "dB"),
    Name("psnr_raw", "PSNR before rounding to 8 bits", QUALITY, UP, "{:.2f}", "dB", detail=True),
    Name("ssim_raw", "SSIM before rounding to 8 bits", QUALITY, UP, "{:.3f}", detail=True),
    Name(r"lpips_raw/(\w+)", "LPIPS by {} before rounding", QUALITY, DOWN, "{:.3f}", detail=True),
    Name(r"rfd_raw/(\w+)", "Fréchet distance by {} before rounding", QUALITY, DOWN, "{:.3f}", detail=True),
    Name(r"ris_raw/(\w+)", "score by {} before rounding", QUALITY, UP, "{:.2f}", detail=True),
    Name("compression_ratio", "compression of 8-bit RGB", CODES, form="{:.1f}", unit="×"),
    Name("code_bits", "bits of an image's codes", CODES, form="{:,.0f}"),
    Name(r"usage/(\d+)", "codes of sub-code {} in use", CODES, UP, "{:.0%}"),
    Name(r"perplexity/(\d+)", "perplexity of sub-code {}", CODES, UP, "{:.1f}"),
    Name(r"dead/(\d+)", "codes of sub-code {} not in use", CODES, DOWN, "{:,.0f}"),
    Name(r"position_usage/(\d+)", "codes of sub-code {} seen at a position", CODES, UP, "{:.1%}"),
    Name(r"position_perplexity/(\d+)", "perplexity of sub-code {} at a position", CODES, UP, "{:.1f}"),
    Name(r"recovery/(\d+)", "codes of sub-code {} in use after a wrong scale", CODES, UP, "{:.1%}"),
    Name(r"recovery_(smaller|larger)/(\d+)", "the same from a {} scale, sub-code {}", CODES, UP, "{:.1%}", detail=True),
    Name("usage/joint", "different tuples of codes per position", CODES, form="{:.3f}"),
    Name("perplexity/joint", "perplexity of tuples", CODES, UP, "{:,.1f}"),
    Name("ks", "Kolmogorov–Smirnov distance to uniform latents", CODES, DOWN, "{:.3f}"),
    Name("rmse_uniform", "RMSE to uniform levels", CODES, DOWN, "{:.3f}"),
    Name("entropy_ratio", "entropy of levels, of the most", CODES, UP, "{:.1%}"),
    Name("bins_hit", "levels in use", CODES, UP, "{:.1%}"),
    Name("nll", "nats a sub-code", LIKELIHOOD, DOWN, "{:.3f}"),
    Name("nll_bound", "nats a sub-code, at most", LIKELIHOOD, DOWN, "{:.3f}"),
    Name(r"nll(?:_bound)?/(\d+)", "nats of sub-code {}", LIKELIHOOD, DOWN, "{:.3f}"),
    Name("bits_per_image", "bits an image", LIKELIHOOD, DOWN, "{:.1f}"),
    Name("bits_per_image_bound", "bits an image, at most", LIKELIHOOD, DOWN, "{:.1f}"),
    Name("loss", "loss", LIKELIHOOD, DOWN, "{:.4f}"),
    Name(r"loss/(\d+)", "loss of sub-code {}", LIKELIHOOD, DOWN, "{:.4f}"),
    Name("accuracy", "accuracy", OTHER, UP, "{:.1%}"),
    Name("error", "error", OTHER, DOWN, "{:.4f}"),
    Name("cider_d", "CIDEr-D", OTHER, UP, "{:.1f}", "%"),
    Name(r"bleu_(\d)", "BLEU-{}", OTHER, UP, "{:.1f}", "%"),
    Name(
        r"silhouette/(\w+)/(\d+)", "silhouette of classes, {} vectors of sub-code {}", OTHER, UP, "{:.3f}", detail=True
    ),
    Name("ablation/psnr_all", "PSNR of all subspaces", OTHER, UP, "{:.2f}", "dB", detail=True),
    Name(r"ablation/psnr_without_(\d+)", "PSNR without subspace {}", OTHER, "", "{:.2f}", "dB", detail=True),
    Name(r"ablation/psnr_only_(\d+)", "PSNR of subspace {} alone", OTHER, UP, "{:.2f}", "dB", detail=True),
    Name(r"ablation/rfd/(\w+)_all", "Fréchet distance by {}, all subspaces", OTHER, DOWN, "{:.3g}", detail=True),
    Name(r"ablation/rfd/(\w+)_without_(\d+)", "Fréchet distance by {} without subspace {}", OTHER, detail=True),
    Name(r"ablation/rfd/(\w+)_only_(\d+)", "Fréchet distance by {}, subspace {} alone", OTHER, DOWN, detail=True),
)


OF_IMAGE_SETS = {  # by kind
    name.pattern: name
    for name in (
        Name("fid", "FID", QUALITY, DOWN, "{:.2f}"),
        Name("fd", "Fréchet distance", QUALITY, DOWN),
        Name("sfid", "sFID", QUALITY, DOWN, "{:.2f}"),
        Name("is", "score", QUALITY, UP, "{:.2f}"),
        Name("recognised", "recognised as their label", QUALITY, UP, "{:.1%}"),
        Name("precision", "precision", QUALITY, UP, "{:.3f}"),
        Name("recall", "recall", QUALITY, UP, "{:.3f}"),
        Name("kid", "KID", QUALITY, DOWN),
        Name("kd", "kernel distance", QUALITY, DOWN),
    )
}


def name_of(metric: str) -> Name:
    """The name of a logged metric: `val/psnr`; one without a name keeps its own, as a detail.

    Args:
        metric: as it was logged, with the prefix `val/`, `test/` or `train/`.
    """
    prefix, _, rest = metric.partition("/")
    for name in NAMES if prefix in ("val", "test") else ():
        if found := re.fullmatch(name.pattern, rest):
            title = name.title.format(*found.groups())
            return replace(name, title=f"{title} (test set)" if prefix == "test" else title)
    return Name(re.escape(metric), metric, OTHER, detail=True)


def order(metric: str) -> tuple[int, str]:
    """Key that sorts metrics as their names are listed above; those without a name are the last."""
    rest = metric.partition("/")[2]
    place = next((place for place, name in enumerate(NAMES) if re.fullmatch(name.pattern, rest)), len(NAMES))
    return (len(NAMES) if metric.startswith("train/") else place, metric)


def name_of_images(metric: str) -> Name:
    """The name of a metric of a set of images, by its kind: that of `gfd/judge` and `rfd/judge`."""
    return OF_IMAGE_SETS.get(kind_of(metric), Name(re.escape(metric), metric, QUALITY))


def kind_of(metric: str) -> str:
    """Kind of a metric of images, without network and prefix: ``fd`` for ``gfd/judge`` and ``rfd/judge``."""
    return re.sub(r"^[gpr](?=(?:fid|fd|sfid|is|kid|kd)$)", "", metric.split("/")[0])
