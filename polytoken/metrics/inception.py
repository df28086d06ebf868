"""Inception network of published metrics: TensorFlow's of 2015 in torch-fidelity's translation.

Published FID, sFID, IS, precision and recall all come from one graph, ``classify_image_graph_def.pb``, which
torch-fidelity has translated weight by weight, with TensorFlow 1's bilinear resize to 299 px and its average pooling.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from polytoken.errors import MissingFileError, UserError
from polytoken.files import file_sha256
from polytoken.metrics.extractor import ImageFeatures, check_images
from polytoken.precision import float32_weights, full_precision
from polytoken.weights import load_state

URL = URL_INCEPTION_V3
WEIGHTS = Path("weights/inception.pth")
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
REMEDY = "run `make weights` where there is a network, or name torch-fidelity's file by its path"

CHANNELS, SIDE = 7, 17


class Inception:
    """Inception as an extractor, outside autocast and without TF32.

    ``pooled`` is pool_3 (2,048), the features of FID, KID, precision and recall. ``logits`` (1,008, of which 1,000
    are ImageNet's classes) are those without bias, as ADM's evaluator and torch-fidelity score them. ``spatial`` are
    the first 7 channels of ``mixed_6/conv`` (``Mixed_6d.branch1x1`` here), height × width × channel like
    TensorFlow's: the 2,023 features of sFID (arXiv 2103.03841; ADM's evaluations/evaluator.py).

    Args:
        path: torch-fidelity's file of weights; nothing is ever downloaded.
        device: device of the network.
        sha256: expected digest of the file.

    Raises:
        MissingFileError: if the file is missing.
        UserError: if it has another digest, is not a file of tensors, or holds another network.
    """

    name = "inception"
    num_features = 2048
    num_classes = 1008
    num_spatial = CHANNELS * SIDE * SIDE
    resize = "bilinear as in TensorFlow 1, to 299 px"

    def __init__(self, path: str | Path = WEIGHTS, device: torch.device | None = None, sha256: str = SHA256) -> None:
        self.path = Path(path)
        self.sha256 = sha256
        self.device = device or torch.device("cpu")
        self._network = _network(self.path, sha256).to(self.device)
        self._maps = torch.empty(0)
        self._network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._maps = output[:, :CHANNELS].permute(0, 2, 3, 1).flatten(1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ImageFeatures:
        check_images(images)
        with full_precision(self.device):
            pooled, logits = self._network(images.to(self.device).contiguous())
        return ImageFeatures(pooled, logits, self._maps)


def _network(path: Path, sha256: str) -> FeatureExtractorInceptionV3:
    """Build the network with the weights of a file."""
    if not path.is_file():
        raise MissingFileError(f"no Inception weights at {path}: {REMEDY}")
    found = file_sha256(path)
    if found != sha256:
        raise UserError(f"{path} has the SHA-256 {found}, and Inception's is {sha256}: {REMEDY}")
    state, _ = load_state(path, REMEDY)
    # torch-fidelity unpickles its file: give it a copy of the tensors that load_state read without unpickling
    tensors = io.BytesIO()
    torch.save(state, tensors)
    tensors.seek(0)
    # discarded initial weights must not shift the caller's stream
    with torch.random.fork_rng(devices=[]), float32_weights():
        try:
            return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], tensors)
        except RuntimeError as error:
            raise UserError(f"{path} is not Inception: {str(error).splitlines()[1].strip()}") from error
