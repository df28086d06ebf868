"""Quantizers, one file each: features to codes and their vectors."""

from polytoken.quantizers.base import Quantizer
from polytoken.quantizers.continuous import ContinuousBottleneck
from polytoken.quantizers.factorized import FactorizedQuantizer
from polytoken.quantizers.finite_scalar import FiniteScalarQuantizer
from polytoken.quantizers.lookup_free import LookupFreeQuantizer
from polytoken.quantizers.multiscale import MultiScaleQuantizer
from polytoken.quantizers.vector import VectorQuantizer

__all__ = [
    "ContinuousBottleneck",
    "FactorizedQuantizer",
    "FiniteScalarQuantizer",
    "LookupFreeQuantizer",
    "MultiScaleQuantizer",
    "Quantizer",
    "VectorQuantizer",
]
