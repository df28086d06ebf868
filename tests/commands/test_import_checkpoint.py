"""Import of released checkpoints: a run that the other programs take, and refusals that leave nothing behind."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from artifacts.completion import completion
from artifacts.lineage import hand_over
from commands import export, probe
from commands.app.explored import Explored
from commands.import_checkpoint import main
from commands.report.__main__ import main as write_report
from polytoken import GenerationPipeline, from_pretrained, load_tokenizer
from polytoken.building import build
from polytoken.files import file_sha256
from polytoken.generators.base import Generator
from polytoken.loading import Checkpoint
from polytoken.pretrained.released import RELEASES
from polytoken.pretrained.released.convert import _announce
from tests.support.commands import exit_code
from tests.support.recipes import CONFIGS
from tests.support.released import small_state

VQ = small_state("llamagen_vq_ds16", {128: 32, 256: 64, 512: 128, 16384: 64}, {})
GPT = small_state("llamagen_gpt_b", {768: 64, 2304: 192, 2048: 256, 16384: 64}, {"layers.": 2})
TOKENIZER, GENERATOR = Path("runs/digits/tokenizer/vq"), Path("runs/digits/llamagen/vq")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as LlamaGen's training writes them, for images of 32 pixels."""
    monkeypatch.chdir(tmp_path)
    for name in ("llamagen/vq_ds16_c2i", "llamagen/c2i_B_256"):
        monkeypatch.setitem(RELEASES, name, replace(RELEASES[name], image_size=32))
    monkeypatch.setattr("sys.argv", ["cli.py"])
    command_line = argparse.Namespace(vq_model="VQ-16")
    torch.save({"model": VQ, "args": command_line, "steps": 3}, "vq.pt")
    torch.save({"model": {f"module.{name}": tensor for name, tensor in GPT.items()}}, "gpt.pt")


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    def refused(*options: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main([*options])
        assert stop.value.code == 2
        return capsys.readouterr().err

    return refused


def import_both() -> None:
    main(["llamagen/vq_ds16_c2i", "--to", str(TOKENIZER), "--file", "vq.pt", "--preset", "digits"])
    more = ("--tokenizer-run", str(TOKENIZER), "--preset", "digits")
    main(["llamagen/c2i_B_256", "--to", str(GENERATOR), "--file", "gpt.pt", *more])


@pytest.mark.slow
def test_an_imported_generator_samples_is_reported_exported_and_starts_another(capsys: pytest.CaptureFixture) -> None:
    import_both()
    assert completion(TOKENIZER) is not None and completion(GENERATOR) is not None
    pipeline = GenerationPipeline.from_run(GENERATOR)
    released = from_pretrained("llamagen/c2i_B_256", file="gpt.pt", tokenizer_file="vq.pt")
    assert isinstance(released, GenerationPipeline)
    drawn, expected = (one.sample(["n01440764", 7], seed=3) for one in (pipeline, released))
    assert [image.tobytes() for image in drawn] == [image.tobytes() for image in expected]

    explored = Explored.load(None, GENERATOR, max_images=2)
    assert explored.pipeline is not None and len(explored.images) == 2 and explored.codes is not None

    few = ("--data.num_images", "2", "--data.batch_size", "2", "--trainer.accelerator", "cpu")
    config = ("--config", str(CONFIGS / "sample.yaml"), "--config", str(CONFIGS / "presets/digits/sample.yaml"))
    stage = ("--run.stage", "samples/vq", "--model.generator_run", str(GENERATOR), "--data.classes", "random")
    assert exit_code("predict", *config, *stage, *few) == 0
    with np.load("runs/digits/samples/vq/samples.npz", allow_pickle=False) as archive:
        assert archive["arr_0"].shape == (2, 32, 32, 3)
    write_report([])
    assert "llamagen" in Path("runs/digits/report.html").read_text()

    checkpoint = Checkpoint.open(GENERATOR)
    again: Generator = build(checkpoint.model["generator"], Generator, "test")  # type: ignore[type-abstract]
    record = checkpoint.record
    assert record.spec is not None
    again.connect(record.spec, record.num_classes)
    start = hand_over(str(GENERATOR), again, record)
    assert start.fresh == () and torch.equal(
        again.state_dict()["embeddings.0.weight"], torch.load("gpt.pt")["model"]["module.tok_embeddings.weight"]
    )

    export.main([str(GENERATOR), "--to", "mine"])
    card = Path("mine/README.md").read_text()
    assert "license: mit" in card and "FoundationVision/LlamaGen" in card


def test_an_imported_tokenizer_is_probed_on_own_images() -> None:
    main(
        ["llamagen/vq_ds16_c2i", "--to", str(TOKENIZER), "--file", "vq.pt", "--preset", "digits", "--image-size", "32"]
    )
    assert load_tokenizer(TOKENIZER).image_size == 32
    probe.main(["--run", str(TOKENIZER), "--max-train", "40"])
    assert json.loads((TOKENIZER / "probes.json").read_text())["n_train"] == 40


def test_licence_and_omissions_are_named(capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture) -> None:
    _announce.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            from_pretrained("llamagen/vq_ds16_c2i", file="vq.pt")
    assert capsys.readouterr().err.count("under the licence MIT") == 1
    assert "no such entries: quantize.codebook_used (1)" in caplog.text


def test_a_download_with_the_stated_digest_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = Path(file_sha256("vq.pt"))
    Path("vq.pt").rename(blob)
    Path("cached.pt").symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: "cached.pt")
    assert from_pretrained("llamagen/vq_ds16_c2i").image_size == 32


def test_refusals_leave_nothing_behind(refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    vq = ("llamagen/vq_ds16_c2i", "--to", str(TOKENIZER))
    assert "did you mean" in refusal("llamagen/vq_ds16", "--to", "x") or "vq_ds16_c2i" in refusal(
        "llamagen/vq", "--to", "x"
    )
    assert "there is no file nowhere.pt" in refusal(*vq, "--file", "nowhere.pt")
    assert "there is no preset mine" in refusal(*vq, "--file", "vq.pt", "--preset", "mine")
    assert "is no checkpoint like llamagen/vq_ds16_c2i" in refusal(*vq, "--file", "gpt.pt")
    assert "leave out --tokenizer-run" in refusal(*vq, "--file", "vq.pt", "--tokenizer-run", "x")
    assert "is not a multiple" in refusal(*vq, "--file", "vq.pt", "--image-size", "33")

    whole = Path("vq.pt").read_bytes()
    Path("cut.pt").write_bytes(whole[: len(whole) // 2])
    assert "is not a readable checkpoint" in refusal(*vq, "--file", "cut.pt")
    torch.save({"model": os.system}, "code.pt")
    assert "could run code" in refusal(*vq, "--file", "code.pt")
    torch.save({"model": {"a": 1}}, "empty.pt")
    assert "holds no weights" in refusal(*vq, "--file", "empty.pt")
    for damage, sentence in (
        ({"encoder.more": torch.zeros(1)}, "weights that this architecture does not have: encoder.more"),
        ({"decoder.conv_out.bias": torch.zeros(4)}, "weights of other shapes: decoder.conv_out.bias (4,) for (3,)"),
        ({"decoder.conv_out.bias": torch.full((3,), torch.nan)}, "is not finite"),
    ):
        torch.save({"model": VQ | damage}, "damaged.pt")
        assert sentence in refusal(*vq, "--file", "damaged.pt")
    torch.save({"model": {name: tensor for name, tensor in VQ.items() if ".mid." not in name}}, "lacks.pt")
    error = refusal(*vq, "--file", "lacks.pt")
    assert "lacks weights of this architecture: encoder.mid.0" in error and "and 42 more" in error

    def offline(*_: str) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    error = refusal(*vq)
    assert "cannot be downloaded (no route to host)" in error and "--file" in error

    blob = Path("a" * 64)
    blob.write_bytes(whole)
    Path("cached.pt").symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: "cached.pt")
    assert "and the hub states aaaaaaaaaaaa…: delete it" in refusal(*vq)

    gpt = ("llamagen/c2i_B_256", "--to", str(GENERATOR), "--file", "gpt.pt")
    assert "import that one (--image-size 32)" in refusal(*gpt)
    assert "there is no checkpoint nowhere" in refusal(*gpt, "--tokenizer-run", "nowhere")
    assert not Path("runs").exists() or not any(path.is_file() for path in Path("runs").rglob("*"))

    main([*vq, "--file", "vq.pt", "--image-size", "64"])
    assert "makes images of 32 pixels" in refusal(*gpt, "--tokenizer-run", str(TOKENIZER))
    assert "exists and is no empty folder" in refusal(*vq, "--file", "vq.pt")


BIAS, TABLE = "decoder.conv_out.bias", "quantize.embedding.weight"
Change = Callable[[torch.Tensor], torch.Tensor]
ODD: dict[str, tuple[str, Change, str]] = {
    "quantized": (
        BIAS,
        lambda bias: torch.quantize_per_tensor(bias, 0.1, 0, torch.qint8),
        "holds decoder.conv_out.bias as a sparse, quantized or meta tensor",
    ),
    "sparse": (BIAS, torch.Tensor.to_sparse, "as a sparse, quantized or meta tensor"),
    "meta": (BIAS, lambda bias: bias.to("meta"), "as a sparse, quantized or meta tensor"),
    "integer": (BIAS, torch.Tensor.long, "decoder.conv_out.bias is torch.int64, and weights are floats"),
    "complex": (BIAS, lambda bias: bias * 1j, "decoder.conv_out.bias is torch.complex64"),
    "too large for float32": (BIAS, lambda bias: bias.double() * 1e300, "decoder.conv_out.bias is not finite"),
    "empty": ("encoder.conv_in.weight", lambda kernel: kernel[:0], "has no weight encoder.conv_in.weight"),
    "2³⁴ codes": (TABLE, lambda table: table[:1].expand(2**34, -1), "VectorQuantizer: codebook_size is 17179869184"),
    "5000 digits": (
        f"encoder.conv_blocks.{'1' * 5000}.res.0.norm1.bias",
        lambda _: torch.zeros(8),
        "weights that this architecture does not have: encoder.conv_blocks.111",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch on quantized and sparse tensors
@pytest.mark.parametrize("what", ODD)
def test_odd_tensors_end_in_a_sentence(what: str, refusal: Callable[..., str]) -> None:
    """Faults that mutated files showed."""
    name, change, sentence = ODD[what]
    torch.save({"model": {**VQ, name: change(VQ.get(name, torch.empty(0)))}}, "odd.pt")
    error = refusal("llamagen/vq_ds16_c2i", "--to", "run", "--file", "odd.pt", "--preset", "digits").splitlines()[-1]
    assert error.startswith("error: odd.pt ") and sentence in error and len(error) < 500
    assert not Path("run").exists()


def test_files_of_another_kind_end_in_a_sentence(refusal: Callable[..., str]) -> None:
    safetensors.torch.save_file(VQ, "named.pt")
    shutil.copy("vq.pt", "named.safetensors")
    Path("text.pt").write_text("<html>not found</html>")
    Path("folder").mkdir()
    fqgan = {128: 8, 256: 16, 512: 32, 1536: 96, 2048: 128, 16384: 64}
    torch.save({"model": small_state("fqgan_dual_ds16", fqgan, {"transformer.": 2})}, "dual.pt")
    for name, file, sentence in (
        ("llamagen/vq_ds16_c2i", "named.pt", "is no torch file, and a safetensors file ends in .safetensors"),
        ("llamagen/vq_ds16_c2i", "text.pt", "is no torch file"),
        ("llamagen/vq_ds16_c2i", "named.safetensors", "is not a readable weights file"),
        ("llamagen/vq_ds16_c2i", "folder", "there is no file folder"),
        ("llamagen/vq_ds16_c2i", "dual.pt", "has no weight quantize.embedding.weight: it is of another architecture"),
        (
            "llamagen/vq_ds8_c2i",
            "vq.pt",
            "vq.pt is no checkpoint like llamagen/vq_ds8_c2i: a position covers 16 pixels",
        ),
        ("fqgan/triple_ds16", "dual.pt", "a position has 2 sub-codes, not 3"),
        ("var/vae_ch160v4096z32", "vq.pt", "it is of another architecture"),
    ):
        error = refusal(name, "--to", "run", "--file", file, "--preset", "digits", "--accept-license")
        assert sentence in error.splitlines()[-1], error
    vq = ("llamagen/vq_ds16_c2i", "--file", "vq.pt", "--preset", "digits")
    assert "image_size is 0" in refusal(*vq, "--to", "run", "--image-size", "0")
    assert "Not a directory" in refusal(*vq, "--to", "vq.pt/run")
    assert not Path("run").exists()


def test_a_safetensors_file_is_read() -> None:
    safetensors.torch.save_file(VQ, "vq.safetensors")
    main(["llamagen/vq_ds16_c2i", "--to", str(TOKENIZER), "--file", "vq.safetensors", "--preset", "digits"])
    assert load_tokenizer(TOKENIZER).image_size == 32
