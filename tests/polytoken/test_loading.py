"""A tokenizer is loaded from its run with the weights of its validation."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polytoken.errors import MissingFileError, UserError
from polytoken.fingerprint import fingerprint
from polytoken.loading import MODEL_CONFIG, Checkpoint, load_generator, load_tokenizer
from polytoken.pipeline import GenerationPipeline
from polytoken.pretrained import from_pretrained, save_pretrained
from polytoken.tokenizers import RepresentationTokenizer
from tests.support.generated import pixels, write_next_scale_runs, write_representation_run, write_runs
from tests.support.precision import caller_in_bfloat16
from tests.support.runs import trained_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_tokenizer(tmp_path_factory.mktemp("place"))


def test_the_average_is_loaded_and_frozen(run: Path) -> None:
    tokenizer = load_tokenizer(run)
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    average = checkpoint["callbacks"]["EMA"]["average"]
    assert any(not torch.equal(average[key], checkpoint["state_dict"][key]) for key in average)
    state = tokenizer.state_dict()
    assert {f"tokenizer.{key}" for key in state} <= average.keys()
    for key, value in state.items():
        assert torch.equal(value, average[f"tokenizer.{key}"]), key
    assert not tokenizer.training and not any(weight.requires_grad for weight in tokenizer.parameters())
    assert tokenizer.spec is not None and tokenizer.spec.codebook_sizes == (64, 64)


def test_settings_of_the_caller_change_nothing(run: Path, tmp_path: Path) -> None:
    """Under a default dtype and in inference mode the same is loaded, and the same numbers are drawn afterwards."""
    digits = write_next_scale_runs(tmp_path / "digits")
    loads = {
        "tokenizer": lambda: load_tokenizer(run),
        "generator": lambda: load_generator(digits),
        "pipeline": lambda: GenerationPipeline.from_run(digits),
        "folder": lambda: save_pretrained(run, tmp_path / "mine") or from_pretrained(tmp_path / "mine"),
    }
    for name, load in loads.items():
        expected = load().state_dict()
        torch.manual_seed(0)
        drawn = torch.rand(1)
        torch.manual_seed(0)
        with caller_in_bfloat16():
            network = load()
        assert torch.equal(torch.rand(1), drawn), name
        for key, value in network.state_dict().items():
            assert value.dtype == expected[key].dtype and torch.equal(value, expected[key]), (name, key)
        assert not any(weight.is_inference() for weight in network.parameters()), name
    torch.manual_seed(0)
    Checkpoint.open(digits).generator()
    assert not torch.equal(torch.rand(1), drawn), "runs draw after a handover, and their numbers stay as they are"


def test_without_an_average_the_last_weights_are_loaded(run: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    del checkpoint["callbacks"]["EMA"]
    torch.save(checkpoint, tmp_path / "plain.ckpt")
    tokenizer = load_tokenizer(tmp_path / "plain.ckpt")
    for key, value in tokenizer.state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][f"tokenizer.{key}"]), key


def test_fingerprint_follows_the_loaded_weights(run: Path) -> None:
    tokenizer = load_tokenizer(run)
    before = fingerprint(tokenizer)
    assert before == fingerprint(load_tokenizer(run / "checkpoints/last.ckpt")) and len(before) == 64
    assert before == fingerprint(tokenizer.to(memory_format=torch.contiguous_format))
    with torch.no_grad():
        next(tokenizer.parameters()).view(-1)[0] += 1e-6
    assert fingerprint(tokenizer) != before


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_a_changed_bit_is_noticed(run: Path, tmp_path: Path, share: float) -> None:
    damaged = tmp_path / "damaged.ckpt"
    content = bytearray((run / "checkpoints/last.ckpt").read_bytes())
    content[int(share * len(content))] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.ckpt is not a readable checkpoint \(the checksum of its part"):
        load_tokenizer(damaged)


def test_unloadable_runs_are_reported(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*nowhere: train"):
        load_tokenizer(tmp_path / "nowhere")
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes((run / "checkpoints/last.ckpt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cut.ckpt is not a readable checkpoint"):
        load_tokenizer(cut)
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    sizes = checkpoint[MODEL_CONFIG]["init_args"]["tokenizer"]["init_args"]
    sizes["latent_channels"] *= 2
    torch.save(checkpoint, tmp_path / "shapes.ckpt")
    with pytest.raises(ValueError, match=r"shapes.ckpt do not fit the tokenizer .*: size mismatch .*") as refused:
        load_tokenizer(tmp_path / "shapes.ckpt")
    assert "more). Train the run again" in str(refused.value) and "\n" not in str(refused.value)
    del checkpoint[MODEL_CONFIG]["init_args"]["tokenizer"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt is not the checkpoint of a tokenizer"):
        load_tokenizer(tmp_path / "other.ckpt")


def test_a_foundation_model_is_no_part_of_the_checkpoint(tmp_path: Path) -> None:
    """Its weights are read from their own file, which a message names once it is gone."""
    run = write_representation_run(tmp_path / "run")
    checkpoint = Checkpoint.open(run)
    tokenizer = checkpoint.tokenizer()
    assert isinstance(tokenizer, RepresentationTokenizer)
    frozen = sum(weight.numel() for weight in tokenizer.foundation.load_from_file().parameters())
    saved = sum(weight.numel() for weight in checkpoint.weights("tokenizer").values())
    assert frozen > 0 and saved == sum(weight.numel() for weight in tokenizer.parameters())
    images = torch.zeros(1, 3, 16, 16)
    assert tokenizer.decode_codes(tokenizer.encode(images).codes).shape == images.shape  # type: ignore[arg-type]
    (file,) = run.glob("**/foundation.safetensors")
    file.unlink()
    with pytest.raises(MissingFileError, match=r"foundation\.safetensors"):
        load_tokenizer(run)


def test_an_exported_model_is_no_run(run: Path, tmp_path: Path) -> None:
    save_pretrained(run, tmp_path / "mine")
    with pytest.raises(MissingFileError, match="no checkpoint .*mine is an exported model, .*polytoken.from_pretr"):
        load_tokenizer(tmp_path / "mine")


@pytest.mark.parametrize("write", [write_runs, write_next_scale_runs])
def test_a_pipeline_can_be_pickled_and_saved(write: Callable[[Path], Path], tmp_path: Path) -> None:
    pipeline = GenerationPipeline.from_run(write(tmp_path / "digits"))
    saved = io.BytesIO()
    torch.save(pipeline, saved)
    saved.seek(0)
    twins = pickle.loads(pickle.dumps(pipeline)), torch.load(saved, weights_only=False)
    expected = pixels(pipeline.sample([3, 4], seed=1))
    for twin in (*twins, pickle.loads(pickle.dumps(pipeline))):  # the last one after the first images
        assert (pixels(twin.sample([3, 4], seed=1)) == expected).all()
