"""Programs of torch.export: equal to the model they were made of, in a process that has torch alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch

from polytoken import GenerationPipeline, UserError
from polytoken.pretrained.programs import has_step, write_onnx, write_programs
from polytoken.quantizers import ContinuousBottleneck, FiniteScalarQuantizer, LookupFreeQuantizer
from polytoken.sampling import CategoricalSampler
from polytoken.tokenizers import Tokenizer
from tests.support.generated import write_next_scale_runs, write_runs
from tests.support.tokenizers import tiny_folded, tiny_representation, tiny_scales, tiny_tokenizer

TOKENIZERS: dict[str, Callable[[Path], Tokenizer]] = {
    "vectors": lambda _: tiny_tokenizer(),
    "finite scalars": lambda _: tiny_tokenizer(branch=FiniteScalarQuantizer(levels=[5, 5, 3])),
    "lookup-free": lambda _: tiny_tokenizer(branch=LookupFreeQuantizer(bits=4)),
    "continuous": lambda _: tiny_tokenizer(branch=ContinuousBottleneck(code_dim=3)),
    "scales": lambda _: tiny_scales(),
    "folded": lambda _: tiny_folded(),
    "representation": tiny_representation,
}
# what a user writes who has torch alone
LOOP = """
import json, sys
for name in ("polytoken", "lightning", "torchvision", "timm", "msgspec", "datasets"):
    sys.modules[name] = None
import torch

record = json.load(open("programs.json"))
start, step, decode = (torch.export.load(f"{name}.pt2").module() for name in ("start", "step", "decode"))
labels = torch.tensor([1, 0, 3, 2, 1])
k, positions = record["encode"]
blocks, _, _, *shape = record["cache"]
keys, values = (torch.zeros(blocks, 2, len(labels), *shape) for _ in range(2))
noise = torch.zeros(len(labels), k, max(record["codebook_sizes"]))  # zeros choose the likeliest code
features, codes = start(labels), []
for position in range(positions):
    chosen, features = step(features, torch.tensor(position), torch.tensor(2.0), noise, keys, values)
    codes.append(chosen)
codes = torch.stack(codes, dim=2)
torch.save((codes, decode(codes)), "drawn.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_encoding_and_decoding_are_those_of_the_tokenizer(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name](tmp_path).eval().requires_grad_(False)
    write_programs(tokenizer, tmp_path)
    encode, decode = (torch.export.load(tmp_path / f"{part}.pt2").module() for part in ("encode", "decode"))
    for batch in (1, 4):
        images = torch.rand(batch, 3, tokenizer.image_size, tokenizer.image_size) * 2 - 1
        encoding = tokenizer.encode(images)
        written = encoding.quantized if encoding.codes is None else encoding.codes
        torch.testing.assert_close(encode(images), written, rtol=0, atol=1e-6)
        expected = tokenizer.decode(encoding.quantized).image
        torch.testing.assert_close(decode(written), expected, rtol=1e-5, atol=1e-5)
    record = json.loads((tmp_path / "programs.json").read_text())
    assert record["encode"] == [*written.shape[1:]] and record["image_size"] == tokenizer.image_size
    assert record["cache"] is None and not (tmp_path / "step.pt2").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vectors", "finite scalars"])
def test_onnx_files_are_those_of_the_tokenizer(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name](tmp_path).eval().requires_grad_(False)
    encode, decode = (onnxruntime.InferenceSession(file) for file in write_onnx(tokenizer, tmp_path))
    images = torch.rand(2, 3, tokenizer.image_size, tokenizer.image_size) * 2 - 1
    encoding = tokenizer.encode(images)
    expected = encoding.quantized if encoding.codes is None else encoding.codes
    (written,) = encode.run(None, {encode.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(written), expected, rtol=0, atol=1e-5)
    (decoded,) = decode.run(None, {decode.get_inputs()[0].name: written})
    torch.testing.assert_close(torch.from_numpy(decoded), tokenizer.decode(encoding.quantized).image, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_process_with_torch_alone_draws_the_same_codes(tmp_path: Path) -> None:
    pipeline = GenerationPipeline.from_run(write_runs(tmp_path / "runs/digits"))
    write_programs(pipeline, tmp_path)
    done = subprocess.run([sys.executable, "-c", LOOP], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
    codes, images = torch.load(tmp_path / "drawn.pt", weights_only=True)
    greedy = CategoricalSampler(guidance=2.0, top_k=1)
    expected = pipeline.network.generate(torch.tensor([1, 0, 3, 2, 1]), greedy, 0)
    assert torch.equal(codes, expected)
    torch.testing.assert_close(images, pipeline.tokenizer.decode_codes(codes), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_generator_without_steps_gives_the_programs_of_its_tokenizer(tmp_path: Path) -> None:
    pipeline = GenerationPipeline.from_run(write_next_scale_runs(tmp_path / "runs/digits"))
    assert not has_step(pipeline.network)
    files = write_programs(pipeline, tmp_path)
    assert {file.name for file in files} == {"encode.pt2", "decode.pt2", "programs.json"}


@pytest.mark.filterwarnings("ignore:.*first stage")
@pytest.mark.parametrize("sub_codes", [[0], [1, 0]])
def test_a_first_stage_or_another_order_has_no_programs(sub_codes: list[int], tmp_path: Path) -> None:
    pipeline = GenerationPipeline.from_run(write_runs(tmp_path / "runs/digits", sub_codes=sub_codes))
    with pytest.raises(UserError, match=rf"writes the sub-codes {re.escape(str(sub_codes))}, .* reads \[0, 1\]"):
        write_programs(pipeline, tmp_path)
    assert not [*tmp_path.glob("*.pt2")]
