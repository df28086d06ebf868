"""Callbacks that measure, keep, steer or write; each is usable alone from YAML under its flat name."""

from callbacks.checkpoint.ema import EMA
from callbacks.checkpoint.kept_checkpoints import KeptCheckpoints
from callbacks.checkpoint.last_checkpoint import LastCheckpoint
from callbacks.checkpoint.random_state import RandomState
from callbacks.checkpoint.run_record import RunRecord
from callbacks.measure.affinity_matrix import AffinityMatrix
from callbacks.measure.code_map import CodeMap
from callbacks.measure.codebook_usage import CodebookUsage
from callbacks.measure.feature_components import FeatureComponents
from callbacks.measure.generation_metrics import GenerationMetrics
from callbacks.measure.layer_analysis import LayerAnalysis
from callbacks.measure.metrics_file import MetricsFile
from callbacks.measure.perceptual_distance import PerceptualDistance
from callbacks.measure.psnr_by_class import PSNRByClass
from callbacks.measure.reconstruction_distance import ReconstructionDistance
from callbacks.measure.reconstruction_grid import ReconstructionGrid
from callbacks.measure.reconstruction_metrics import ReconstructionMetrics
from callbacks.measure.scale_reconstructions import ScaleReconstructions
from callbacks.measure.subspace_ablation import SubspaceAblation
from callbacks.measure.tensorboard_overview import TensorBoardOverview
from callbacks.measure.uniformity import Uniformity
from callbacks.predict.conditional_writer import ConditionalWriter
from callbacks.predict.sample_writer import SampleWriter
from callbacks.predict.token_writer import TokenWriter
from callbacks.steer.loss_spike import LossSpike
from callbacks.steer.progress import StepProgressBar
from callbacks.steer.rank_watch import RankWatch
from callbacks.steer.requeue import Requeue
from callbacks.steer.text_progress import TextProgress

__all__ = [
    "EMA",
    "AffinityMatrix",
    "CodeMap",
    "CodebookUsage",
    "ConditionalWriter",
    "FeatureComponents",
    "GenerationMetrics",
    "KeptCheckpoints",
    "LastCheckpoint",
    "LayerAnalysis",
    "LossSpike",
    "MetricsFile",
    "PSNRByClass",
    "PerceptualDistance",
    "RandomState",
    "RankWatch",
    "ReconstructionDistance",
    "ReconstructionGrid",
    "ReconstructionMetrics",
    "Requeue",
    "RunRecord",
    "SampleWriter",
    "ScaleReconstructions",
    "StepProgressBar",
    "SubspaceAblation",
    "TensorBoardOverview",
    "TextProgress",
    "TokenWriter",
    "Uniformity",
]
