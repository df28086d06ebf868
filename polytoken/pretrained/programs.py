"""Programs of a trained model: of torch.export, for code that has torch alone, and ONNX files of its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from torch import Tensor, nn
from torch.export import Dim

from polytoken import records
from polytoken.errors import UserError, first_line
from polytoken.generators.autoregressive import AutoregressiveGenerator
from polytoken.generators.heads import ClassifierHead
from polytoken.pipeline import GenerationPipeline
from polytoken.sampling import CategoricalSampler, Draw, RowNoise
from polytoken.sampling.guidance import guide
from polytoken.sampling.row_noise import Key
from polytoken.tokenizers import Tokenizer

PROGRAMS = "programs.json"
EXAMPLE = 3  # rows of the example; 1 would be taken for a constant


class ProgramRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``programs.json``: what the programs of a folder read and write.

    Attributes:
        image_size: pixels a side of the images (B, 3, image_size, image_size) in [-1, 1], float32.
        encode: shape of what ``encode.pt2`` writes and ``decode.pt2`` reads, without B: codes (k, N) int64, or float32
            vectors (C, h, w) of a tokenizer without codes.
        codebook_sizes: K_1 … K_k; None without codes.
        cache: shape (blocks, 2, B, heads, N, channels) of the keys and values of ``step.pt2``, with 0 for B; None
            without a generator.
        class_to_idx: class names and their labels; None without a generator.
    """

    image_size: int
    encode: tuple[int, ...]
    codebook_sizes: tuple[int, ...] | None
    cache: tuple[int, ...] | None = None
    class_to_idx: Mapping[str, int] | None = None


def write_programs(model: Tokenizer | GenerationPipeline, folder: Path) -> list[Path]:
    """Write ``encode.pt2`` and ``decode.pt2``, and ``start.pt2`` and ``step.pt2`` of an autoregressive generator.

    Args:
        model: as ``polytoken.from_pretrained`` returns it, on the CPU.
        folder: exists.

    Raises:
        UserError: if an operation of the model has no exported form, or a generator does not write all sub-codes in
            the tokenizer's order.
    """
    pipeline, tokenizer = _parts(model)
    sizes = tokenizer.spec.codebook_sizes if tokenizer.spec else None
    every = [*range(len(sizes or ()))]
    if pipeline is not None and pipeline.network.models == "codes" and pipeline.sub_codes != every:
        raise UserError(
            f"the generator writes the sub-codes {pipeline.sub_codes}, and decode.pt2 reads {every}: export a second "
            "stage that was trained with data.sub_codes null"
        )
    batch = Dim("batch", min=1, max=65536)
    images, written = _example(tokenizer)
    files = [
        _write(_Encode(tokenizer), (images,), ({0: batch},), folder / "encode.pt2"),
        _write(_Decode(tokenizer), (written,), ({0: batch},), folder / "decode.pt2"),
    ]
    record = ProgramRecord(image_size=tokenizer.image_size, encode=tuple(written.shape[1:]), codebook_sizes=sizes)
    if pipeline is not None and has_step(pipeline.network):
        network = cast(AutoregressiveGenerator, pipeline.network)
        files += _write_generator(network, folder)
        cache = network.trunk.new_cache(1)
        shape = (len(cache.keys), 2, 0, *cache.keys[0].shape[1:])
        record = msgspec.structs.replace(record, cache=shape, class_to_idx=pipeline.class_to_idx)
    records.write(folder / PROGRAMS, record)
    return [*files, folder / PROGRAMS]


def write_onnx(model: Tokenizer | GenerationPipeline, folder: Path) -> list[Path]:
    """Write ``encode.onnx`` and ``decode.onnx`` of the tokenizer; arguments and errors as for :func:`write_programs`.

    Raises:
        UserError: also if the extra ``onnx`` is not installed.
    """
    try:
        import onnxscript  # noqa: F401, PLC0415 - torch.onnx needs it
    except ImportError as error:
        raise UserError("ONNX files are written by the extra `onnx`: pip install '.[onnx]'") from error
    _, tokenizer = _parts(model)
    images, written = _example(tokenizer)
    programs = {"encode": (_Encode(tokenizer), images), "decode": (_Decode(tokenizer), written)}
    batch, files = Dim("batch", min=1, max=65536), []
    for name, (program, example) in programs.items():
        file = folder / f"{name}.onnx"
        try:
            found = torch.onnx.export(
                program.eval(), (example,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
            )
        except Exception as error:  # noqa: BLE001 - tracing raises whatever the traced code does
            raise UserError(f"{file.name} cannot be made, since torch.onnx fails: {first_line(error)}") from error
        assert found is not None, "dynamo=True returns a program"
        found.save(file)
        files.append(file)
    return files


def _parts(model: Tokenizer | GenerationPipeline) -> tuple[GenerationPipeline | None, Tokenizer]:
    return (model, model.tokenizer) if isinstance(model, GenerationPipeline) else (None, model)


def _example(tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Images and their codes or vectors."""
    images = torch.zeros(EXAMPLE, 3, tokenizer.image_size, tokenizer.image_size)
    with torch.no_grad():
        return images, _Encode(tokenizer)(images)


def has_step(network: nn.Module) -> bool:
    """True if a generator writes one position after the other by classifiers, which one program can do."""
    return isinstance(network, AutoregressiveGenerator) and isinstance(network.head, ClassifierHead)


def _write_generator(network: AutoregressiveGenerator, folder: Path) -> list[Path]:
    batch = Dim("batch", min=1, max=32768)
    labels = torch.zeros(EXAMPLE, dtype=torch.int64)
    features = torch.zeros(2, EXAMPLE, 1, network.width)
    cache = network.trunk.new_cache(2 * EXAMPLE)
    keys, values = (torch.stack(each).unflatten(1, (2, EXAMPLE)) for each in (cache.keys, cache.values))
    noise = torch.zeros(EXAMPLE, network.spec.num_sub_codes, max(network.spec.codebook_sizes))
    step = (features, torch.tensor(0), torch.tensor(1.0), noise, keys, values)
    rows = {1: batch}, None, None, {0: batch}, {2: batch}, {2: batch}
    return [
        _write(_Start(network), (labels,), ({0: batch},), folder / "start.pt2"),
        _write(_Step(network), step, rows, folder / "step.pt2"),
    ]


def _write(program: nn.Module, example: tuple[Tensor, ...], shapes: tuple[Any, ...], file: Path) -> Path:
    try:
        exported = torch.export.export(program.eval(), example, dynamic_shapes=shapes)
    except Exception as error:  # noqa: BLE001 - tracing raises whatever the traced code does
        raise UserError(f"{file.name} cannot be made, since torch.export fails: {first_line(error)}") from error
    torch.export.save(exported, file)
    return file


class _Encode(nn.Module):
    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Tensor:
        encoding = self.tokenizer.encode(images)
        return encoding.quantized if encoding.codes is None else encoding.codes


class _Decode(nn.Module):
    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, tokens: Tensor) -> Tensor:
        if self.tokenizer.spec is None:
            return self.tokenizer.decode(tokens).image
        return self.tokenizer.decode_codes(tokens)


class _Start(nn.Module):
    """Labels (B,) to the features (2, B, 1, dim) of the first step: those of the classes, then of the null class."""

    def __init__(self, network: AutoregressiveGenerator) -> None:
        super().__init__()
        self.class_embedding = network.class_embedding
        self.null = network.num_classes

    def forward(self, labels: Tensor) -> Tensor:
        rows = torch.stack([labels, torch.full_like(labels, self.null)])
        return self.class_embedding(rows).unsqueeze(2)


class _Step(nn.Module):
    """One position: features (2, B, 1, dim) to codes (B, k) and the next features; the cache is written in place."""

    def __init__(self, network: AutoregressiveGenerator) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, features: Tensor, position: Tensor, guidance: Tensor, noise: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        network = self.network
        cache = network.trunk.new_cache(0)
        cache.keys, cache.values = ([*each.flatten(1, 2).unbind()] for each in (keys, values))
        rows, draw = features.flatten(0, 1), _GivenDraw(noise, guidance)
        codes, following = network.decode(rows, position, draw, cache, network.head.new_cache(rows.shape[0]))
        return codes, following.unflatten(0, (2, noise.shape[0]))


class _GivenDraw(Draw):
    """Draws by Gumbel noise (B, k, K) and a guidance scale () that the caller of a step brings.

    Zeros instead of noise choose the likeliest codes, and noise times T draws at the temperature T.
    """

    def __init__(self, noise: Tensor, guidance: Tensor, position: Key = 0) -> None:
        super().__init__(
            CategoricalSampler(), RowNoise(0, 0, 0, noise.device), torch.zeros(1, noise.shape[1]), position
        )
        self.given, self.guidance = noise, guidance

    def at(self, position: Key) -> Draw:
        return _GivenDraw(self.given, self.guidance, position)

    def guided(self, logits: Tensor, sub_code: int) -> Tensor:
        return guide(logits, self.guidance)

    def gumbel(self, sub_code: int, *keys: int, shape: tuple[int, ...]) -> Tensor:
        return self.given[:, sub_code, : shape[-1]]
