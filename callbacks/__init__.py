"""What watches or steers a run, each usable alone from YAML."""

from callbacks.codebook_usage import CodebookUsage
from callbacks.ema import EMA
from callbacks.judge_accuracy import JudgeAccuracy
from callbacks.psnr_by_class import PSNRByClass
from callbacks.reconstruction_grid import ReconstructionGrid
from callbacks.reconstruction_metrics import ReconstructionMetrics

__all__ = ["EMA", "CodebookUsage", "JudgeAccuracy", "PSNRByClass", "ReconstructionGrid", "ReconstructionMetrics"]
