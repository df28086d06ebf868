"""Bottlenecks between an encoder's features and a decoder: one file a quantizer."""

from models.quantizers.base import Quantizer
from models.quantizers.continuous import ContinuousBottleneck
from models.quantizers.factorized import FactorizedQuantizer
from models.quantizers.finite_scalar import FiniteScalarQuantizer
from models.quantizers.vector import VectorQuantizer

__all__ = ["ContinuousBottleneck", "FactorizedQuantizer", "FiniteScalarQuantizer", "Quantizer", "VectorQuantizer"]
