"""Runs of a tokenizer and a generator with random weights, written as training leaves them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn

from polytoken.building import build
from polytoken.codec import FrozenCodec
from polytoken.fingerprint import fingerprint
from polytoken.generators import Generator, LinearHead, MultiLinearHead, TrunkConfig
from polytoken.specs import LatentSpec, TokenSpec
from polytoken.tokenizers import Tokenizer
from tests.support.generators import build_generator
from tests.support.recipes import CONFIGS
from tests.support.tokenizers import tiny_folded, tiny_representation, tiny_tokenizer

TRUNK = {"dim": 16, "depth": 1, "num_heads": 2, "ffn_multiple": 16}
BRANCH = {"class_path": "polytoken.quantizers.VectorQuantizer", "init_args": {"codebook_size": 16, "code_dim": 4}}
TOKENIZER = {
    "base_channels": 32,
    "channel_multipliers": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "latent_channels": 32,
    "projection_channels": 32,
    "adapter": "convolutional",
    "adapter_depth": 1,
}


def write_runs(
    root: Path,
    num_subspaces: int = 2,
    sub_codes: list[int] | None = None,
    stage: str = "stage2",
    image_size: int = 16,
) -> Path:
    """Both runs below ``root``; the directory of the generator, which knows the ten digits.

    Args:
        root: e.g. ``runs/digits``.
        num_subspaces: of the tokenizer.
        sub_codes: those that the generator writes; None is all.
        stage: the generator's.
        image_size: of the tokenizer.
    """
    tokenizer = tiny_tokenizer(image_size, num_subspaces, 16)
    quantizer = {
        "class_path": "polytoken.quantizers.FactorizedQuantizer",
        "init_args": {"branch": BRANCH, "num_branches": num_subspaces},
    }
    section = {
        "class_path": "polytoken.tokenizers.ConvolutionalTokenizer",
        "init_args": {**TOKENIZER, "image_size": image_size, "quantizer": quantizer},
    }
    tokenizer_run = _write(root / "tokenizer/tiny", "tokenizer", tokenizer, {"tokenizer": section})

    full = tokenizer.spec
    chosen = list(range(num_subspaces)) if sub_codes is None else sub_codes
    spec = TokenSpec(tuple(full.codebook_sizes[i] for i in chosen), full.scales)
    head = MultiLinearHead() if len(chosen) > 1 else LinearHead()
    torch.manual_seed(1)
    generator = build_generator(spec, 10, TrunkConfig(**TRUNK), head)
    for parameter in generator.parameters():  # the head is initialised to zero, and would ignore the class
        nn.init.normal_(parameter, std=0.5)
    arguments = {
        "trunk": TRUNK,
        "head": {"class_path": f"polytoken.generators.{type(head).__name__}"},
        "aggregation": "concatenation",
        "noise": None,
    }
    model = {"generator": {"class_path": "polytoken.generators.AutoregressiveGenerator", "init_args": arguments}}
    record = {
        "spec": asdict(spec),
        "full_spec": asdict(full),
        "sub_codes": chosen,
        "num_classes": 10,
        "class_to_idx": {str(digit): digit for digit in range(10)},
        "tokenizer_run": str(tokenizer_run),
        "tokenizer_fingerprint": fingerprint(tokenizer),
    }
    origin = {name: record[name] for name in ("tokenizer_run", "tokenizer_fingerprint")}
    record["lineage"] = {**origin, "store": "store", "init_from": None}
    return _write(root / stage / "tiny", "generator", generator, model, generator=record)


SCALAR = {"class_path": "polytoken.quantizers.FiniteScalarQuantizer", "init_args": {"levels": [5, 5, 3], "alpha": 1.6}}
CONTINUOUS = {"class_path": "polytoken.quantizers.ContinuousBottleneck", "init_args": {"code_dim": 3}}
DIFFUSION = {
    "class_path": "polytoken.generators.DiffusionTransformer",
    "init_args": {"trunk": {"dim": 16, "depth": 2, "num_heads": 2}},
}


def write_latent_runs(root: Path, quantizer: dict[str, Any], image_size: int = 16) -> Path:
    """Runs of a tokenizer of 3 channels and of a diffusion transformer; the directory of the latter.

    Args:
        root: e.g. ``runs/digits``.
        quantizer: ``SCALAR`` or ``CONTINUOUS``.
        image_size: of the tokenizer.
    """
    section = {
        "class_path": "polytoken.tokenizers.ConvolutionalTokenizer",
        "init_args": {**TOKENIZER, "image_size": image_size, "quantizer": quantizer},
    }
    torch.manual_seed(0)
    tokenizer = build(section, Tokenizer, "the test", ())
    tokenizer_run = _write(root / "tokenizer/tiny", "tokenizer", tokenizer, {"tokenizer": section})
    latents = LatentSpec(3, tokenizer.grid, (0.1, 0.0, -0.2), (0.5, 0.6, 0.7))
    generator = build(DIFFUSION, Generator, "the test", ())
    generator.connect(latents, 10)
    for parameter in generator.parameters():  # the output is initialised to zero
        nn.init.normal_(parameter, std=0.2)
    spec = tokenizer.spec and asdict(tokenizer.spec)
    origin = {"tokenizer_run": str(tokenizer_run), "tokenizer_fingerprint": fingerprint(tokenizer)}
    record = {
        "spec": spec,
        "full_spec": spec,
        "sub_codes": [0] if spec else [],
        "latents": asdict(latents),
        "num_classes": 10,
        "class_to_idx": {str(digit): digit for digit in range(10)},
        **origin,
        "lineage": {**origin, "store": "store", "init_from": None},
    }
    return _write(root / "dit/tiny", "generator", generator, {"generator": DIFFUSION}, generator=record)


def write_folded_run(run: Path) -> Path:
    """Run of :func:`tests.support.tokenizers.tiny_folded`."""
    branch = {
        "class_path": "polytoken.quantizers.MultiScaleQuantizer",
        "init_args": {"scales": [1, 2, 3], "codebook_size": 16, "code_dim": 4, "num_convolutions": 2},
    }
    quantizer = {
        "class_path": "polytoken.quantizers.FactorizedQuantizer",
        "init_args": {"branch": branch, "num_branches": 2},
    }
    sizes = {"patch_size": 4, "dim": 32, "depth": 2, "num_heads": 4, "stochastic_depth": 0.0, "layer_scale": None}
    section = {
        "class_path": "polytoken.tokenizers.FoldedTokenizer",
        "init_args": {"quantizer": quantizer, "grid_size": 3, "image_size": 16, "transformer": sizes},
    }
    return _write(run, "tokenizer", tiny_folded(), {"tokenizer": section})


def write_representation_run(run: Path, foundation: dict[str, Any] | None = None) -> Path:
    """Run of :func:`tests.support.tokenizers.tiny_representation`.

    Args:
        run: its directory.
        foundation: settings of the foundation model; None writes a stand-in with attention pooling.
    """
    tokenizer = tiny_representation(run, pooling="attention")
    section = {
        "class_path": "polytoken.tokenizers.RepresentationTokenizer",
        "init_args": {
            "quantizer": BRANCH,
            "foundation": foundation or {"name": "stand_in", "weights": str(run / "foundation.safetensors")},
            "shallow": 1,
            "image_size": 16,
            "feature_decoder": {"depth": 1, "num_heads": 4, "dropout": 0.0},
            "base_channels": 32,
            "channel_multipliers": [1, 1, 1, 1],
        },
    }
    return _write(run, "tokenizer", tokenizer, {"tokenizer": section})


def write_next_scale_runs(
    root: Path, head: str = "MultiLinearHead", image_size: int = 32, sub_codes: tuple[int, ...] = (0, 1)
) -> Path:
    """Runs of a tokenizer of two branches with three scales, and of a next-scale generator; the latter's directory."""
    sizes = {"scales": [1, 2, image_size // 8], "codebook_size": 16, "code_dim": 4, "num_convolutions": 2}
    branch = {"class_path": "polytoken.quantizers.MultiScaleQuantizer", "init_args": sizes}
    quantizer = {
        "class_path": "polytoken.quantizers.FactorizedQuantizer",
        "init_args": {"branch": branch, "num_branches": 2},
    }
    section = {
        "class_path": "polytoken.tokenizers.ConvolutionalTokenizer",
        "init_args": {**TOKENIZER, "image_size": image_size, "quantizer": quantizer},
    }
    torch.manual_seed(0)
    tokenizer = build(section, Tokenizer, "the test", ()).eval()
    tokenizer_run = _write(root / "tokenizer/tiny", "tokenizer", tokenizer, {"tokenizer": section})
    trunk = {"depth": 1, "dim": 32, "num_heads": 2, "gate_scale": 1.0}
    head_section = {"class_path": f"polytoken.generators.{head}"}
    model = {
        "generator": {
            "class_path": "polytoken.generators.NextScaleGenerator",
            "init_args": {"trunk": trunk, "head": head_section},
        }
    }
    generator = build(model["generator"], Generator, "the test", ())
    spec = tokenizer.require_codes()
    generator.connect(spec.select(sub_codes), 10, FrozenCodec(lambda: tokenizer, sub_codes))
    for parameter in generator.parameters():  # the head is initialised to zero, and would ignore the class
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    origin = {"tokenizer_run": str(tokenizer_run), "tokenizer_fingerprint": fingerprint(tokenizer)}
    record = {
        "spec": asdict(spec.select(sub_codes)),
        "full_spec": asdict(spec),
        "sub_codes": list(sub_codes),
        "num_classes": 10,
        "class_to_idx": {str(digit): digit for digit in range(10)},
        **origin,
        "lineage": {**origin, "store": "store", "init_from": None},
    }
    return _write(root / "next_scale/tiny", "generator", generator, model, generator=record)


def _write(run: Path, name: str, network: nn.Module, model: dict[str, Any], **more: Any) -> Path:
    (run / "checkpoints").mkdir(parents=True)
    checkpoint = {
        "state_dict": {f"{name}.{key}": value for key, value in network.state_dict().items()},
        "model_config": {"class_path": "any", "init_args": model},
        "global_step": 7,
        **more,
    }
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    return run


def configure(run: Path) -> Path:
    """Write the configurations that cli.py leaves: the images of the tokenizer's run, and the generator's preset."""
    data = yaml.safe_load((CONFIGS / "presets/digits/tokenizer.yaml").read_text())["data"]
    (run.parent.parent / "tokenizer/tiny/config.yaml").write_text(yaml.safe_dump({"data": data}))
    (run / "config.yaml").write_text(yaml.safe_dump({"run": {"preset": "digits"}}))
    return run


def keep(run: Path, steps: tuple[int, ...], batch: int = 4) -> Path:
    """Make a run of the last of these steps, which has kept the checkpoints of the others."""
    last = run / "checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    for step in steps:
        checkpoint["global_step"] = step
        position = {"batches_trained": step, "offset": 0, "seed": 0, "global_batch_size": batch, "length": 1000}
        checkpoint["TokenDataModule"] = {**position, "class_to_idx": {}}
        torch.save(checkpoint, last if step == steps[-1] else last.with_name(f"step_{step}.ckpt"))
    return run


def pixels(images: list[Image.Image]) -> np.ndarray:
    """Pixels of images of one size, int64 (n, H, W, 3), whose differences have a sign."""
    return np.stack([np.asarray(image) for image in images]).astype(int)
