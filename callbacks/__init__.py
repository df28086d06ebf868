"""What watches or steers a run, each usable alone from YAML."""

from callbacks.affinity_matrix import AffinityMatrix
from callbacks.code_map import CodeMap
from callbacks.codebook_usage import CodebookUsage
from callbacks.ema import EMA
from callbacks.generation_metrics import GenerationMetrics
from callbacks.judge_metrics import JudgeMetrics
from callbacks.perceptual_distance import PerceptualDistance
from callbacks.psnr_by_class import PSNRByClass
from callbacks.reconstruction_distance import ReconstructionDistance
from callbacks.reconstruction_grid import ReconstructionGrid
from callbacks.reconstruction_metrics import ReconstructionMetrics
from callbacks.sample_writer import SampleWriter
from callbacks.subspace_ablation import SubspaceAblation
from callbacks.token_writer import TokenWriter
from callbacks.uniformity import Uniformity

__all__ = [
    "EMA",
    "AffinityMatrix",
    "CodeMap",
    "CodebookUsage",
    "GenerationMetrics",
    "JudgeMetrics",
    "PSNRByClass",
    "PerceptualDistance",
    "ReconstructionDistance",
    "ReconstructionGrid",
    "ReconstructionMetrics",
    "SampleWriter",
    "SubspaceAblation",
    "TokenWriter",
    "Uniformity",
]
