"""The generation pipeline: images of classes, and runs that it rejects."""

import copy
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from polytoken.errors import MissingFileError, UserError
from polytoken.pipeline import GenerationPipeline
from polytoken.sampling import CategoricalSampler, FlowSampler, RowNoise, SamplerSettings
from polytoken.specs import Tokens
from tests.support.generated import CONTINUOUS, SCALAR, pixels, write_latent_runs, write_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def generator(run: Path) -> GenerationPipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return GenerationPipeline.from_run(run)


def test_images_depend_on_seed_class_and_index_but_not_the_batch(generator: GenerationPipeline) -> None:
    images = pixels(generator.sample([3, "3", 4, 4, 9], guidance=2.0, seed=5))
    assert images.shape == (5, 16, 16, 3)
    again = pixels(generator.sample([3, 3, 4, 4, 9], guidance=2.0, seed=5, batch_size=2))
    assert abs(images - again).max() <= 1  # another batch size may round differently
    assert (pixels(generator.sample([3, 3], guidance=2.0, seed=5, batch_size=2)) == again[:2]).all()
    assert abs(images[0] - images[1]).max() > 1  # the same class at another index
    for other in (
        generator.sample([3], guidance=2.0, seed=6),
        generator.sample([4], guidance=2.0, seed=5),
        generator.sample([3], guidance=0.0, seed=5),
        generator.sample([3], guidance=2.0, seed=5, top_k=1),
    ):
        assert abs(pixels(other)[0] - images[0]).max() > 1


def test_images_are_decoded_from_the_generated_codes(generator: GenerationPipeline) -> None:
    labels, sampler = torch.tensor([1, 2, 3]), CategoricalSampler(guidance=1.5)
    codes = generator.network.generate(labels, sampler, seed=2, first_index=4)
    decoded = generator.tokenizer.decode_codes(codes)
    images = generator.images(labels, sampler, 2, 4)
    assert images.dtype == torch.uint8 and images.shape == (3, 16, 16, 3)
    assert ((decoded.clamp(-1, 1) + 1) * 127.5 - images.permute(0, 3, 1, 2)).abs().max() <= 0.51


def test_codes_are_decoded_in_float32(generator: GenerationPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([1, 2, 3])
    codes = generator.network.generate(labels, CategoricalSampler(), seed=2)
    expected = generator.images(labels, CategoricalSampler(), 2)
    monkeypatch.setattr(generator.network, "sample", lambda *_: Tokens(codes=codes))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(generator.images(labels, CategoricalSampler(), 2), expected)


def test_tokens_are_decoded_without_tf32(generator: GenerationPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, decode = [], generator.tokenizer.decode
    monkeypatch.setattr(
        generator.tokenizer, "decode", lambda *given: seen.append(torch.backends.cudnn.allow_tf32) or decode(*given)
    )
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        generator.sample([0])
    assert seen == [False]


def test_classes_may_be_any_integers(generator: GenerationPipeline) -> None:
    expected = pixels(generator.sample([3, 1]))
    assert (pixels(generator.sample(np.array([3, 1]))) == expected).all()
    assert (pixels(generator.sample(torch.tensor([3, 1]))) == expected).all()


def test_origin_names_the_runs(generator: GenerationPipeline, run: Path) -> None:
    assert generator.origin["generator"]["step"] == 7 and len(generator.origin["generator"]["sha256"]) == 64
    assert generator.origin["tokenizer"]["run"].endswith("tokenizer/tiny")
    assert generator.class_names[:2] == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"classes": [10]}, "no class 10: the generator knows 0 to 9"),
        ({"classes": [-1]}, "no class -1: the generator knows 0 to 9"),
        ({"classes": [1.7]}, "1.7 is no class: name classes by whole numbers or by name"),
        ({"classes": "three"}, r"classes is 'three': give a list, \['three'\]"),
        ({"classes": "314"}, "classes is '314': give a list"),
        ({"classes": 3}, r"classes is 3: give a list, \[3\]"),
        ({"classes": 3, "references": torch.zeros(1, 3, 16, 16)}, "classes is 3: give a list"),
        ({"classes": [1], "guidance": "2"}, "guidance is '2'; it must be a number, from 0 to 1,000"),
        ({"classes": [1], "guidance": (1.0, 2.0, 3.0)}, "guidance has 3 values and the generator writes 2 sub-codes"),
        ({"classes": ["cat"]}, "no class 'cat': the generator knows 0, 1"),
        ({"classes": [1], "guidance": -1.0}, "guidance is -1"),
        ({"classes": [1], "top_p": 0.0}, "top_p is 0"),
        ({"classes": [1], "guidance": 4.0, "sampler": CategoricalSampler()}, "guidance, .* is given as well: set them"),
        ({"classes": [1], "top_k": 5, "sampler": CategoricalSampler()}, "sampler holds all rules, and"),
    ],
)
def test_invalid_classes_and_settings_are_rejected(generator: GenerationPipeline, arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        generator.sample(**arguments)


@pytest.mark.parametrize("codebook", [0, 1])
def test_a_first_stage_decodes_its_own_sub_codes_and_warns(tmp_path: Path, codebook: int) -> None:
    run = write_runs(tmp_path, sub_codes=[codebook], stage="stage1")
    says = rf"first stage.*writes the sub-codes \[{codebook}\] of the 2.*set to zero.*make stage2"
    with pytest.warns(UserWarning, match=says):
        generator = GenerationPipeline.from_run(run)
    labels, sampler = torch.tensor([1, 2]), CategoricalSampler()
    codes = generator.network.generate(labels, sampler, seed=2)[:, 0]
    tokenizer = generator.tokenizer
    quantized = torch.zeros(2, 8, 2, 2)
    quantized[:, 4 * codebook : 4 * codebook + 4] = tokenizer.quantizer.branches[codebook].embed_codes(
        codes[:, None], (2, 2)
    )
    expected = (tokenizer.decode(quantized).image.clamp(-1, 1) + 1) * 127.5
    assert (expected - generator.images(labels, sampler, 2).permute(0, 3, 1, 2)).abs().max() <= 0.51


def test_reordered_sub_codes_are_restored_for_the_tokenizer(tmp_path: Path) -> None:
    generator = GenerationPipeline.from_run(write_runs(tmp_path, sub_codes=[1, 0]))
    codes = generator.network.generate(torch.tensor([1, 2]), CategoricalSampler(), seed=2)
    expected = (generator.tokenizer.decode_codes(codes.flip(1)).clamp(-1, 1) + 1) * 127.5
    images = generator.images(torch.tensor([1, 2]), CategoricalSampler(), 2)
    assert (expected - images.permute(0, 3, 1, 2)).abs().max() <= 0.51


def test_a_first_stage_of_a_single_codebook_warns(tmp_path: Path) -> None:
    run = write_runs(tmp_path, num_subspaces=1, stage="stage1")
    with pytest.warns(UserWarning, match="first stage"):
        generator = GenerationPipeline.from_run(run)
    assert len(generator.sample([0, 1])) == 2


def test_the_tokenizer_must_have_the_fingerprint_of_training(tmp_path: Path) -> None:
    run = write_runs(tmp_path / "here")
    (tmp_path / "here/tokenizer/tiny").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="tokenizer/tiny"):
        GenerationPipeline.from_run(run)
    generator = GenerationPipeline.from_run(run, tmp_path / "moved")
    assert generator.origin["tokenizer"]["run"] == str(tmp_path / "moved")
    file = tmp_path / "moved/checkpoints/last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    next(iter(checkpoint["state_dict"].values())).add_(1)
    torch.save(checkpoint, file)
    with pytest.raises(
        ValueError, match=f"fingerprint {generator.origin['tokenizer']['fingerprint'][:12]}.*{tmp_path}"
    ):
        GenerationPipeline.from_run(run, tmp_path / "moved")


def test_the_tokenizer_has_the_shape_of_the_codes(tmp_path: Path) -> None:
    """As after a token store whose codebook sizes were edited; the fingerprint is that of the tokenizer."""
    run = write_runs(tmp_path)
    file = run / "checkpoints/last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    for name in ("spec", "full_spec"):
        first, *others = checkpoint["generator"][name]["codebook_sizes"]
        checkpoint["generator"][name]["codebook_sizes"] = [first + 1, *others]
    torch.save(checkpoint, file)
    with pytest.raises(UserError, match=r"last.ckpt writes tokens of the shape .*: the token store is not as that"):
        GenerationPipeline.from_run(run)


def test_other_runs_are_rejected(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the checkpoint of a generator"):
        GenerationPipeline.from_run(run.parent.parent / "tokenizer/tiny")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        GenerationPipeline.from_run(tmp_path)


@pytest.mark.slow
def test_compiled_decoding_draws_the_same_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of the first batch serves the second one; aot_eager runs it operator by operator."""
    expected, compiled = (GenerationPipeline.from_run(run, compile=value) for value in (False, True))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()
    for first in (0, 2):
        batch = torch.tensor([1, 2]), CategoricalSampler(), 5, first
        assert torch.equal(compiled.images(*batch), expected.images(*batch))
    assert counters["stats"]["unique_graphs"] == 1


def test_rounding_the_weights_once_draws_the_images_of_autocast(run: Path) -> None:
    rounded, expected = GenerationPipeline.from_run(run), GenerationPipeline.from_run(run)
    rounded.round_weights(torch.bfloat16)
    assert rounded.network.trunk.blocks[0].attention.wqkv.weight.dtype == torch.bfloat16
    batch = torch.tensor([1, 2]), CategoricalSampler(guidance=2.0), 5
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rounded.images(*batch), expected.images(*batch))


@pytest.fixture(scope="module", params=["scalar", "continuous"])
def flow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GenerationPipeline:
    """A pipeline of latents, with and without codes."""
    quantizer = {"scalar": SCALAR, "continuous": CONTINUOUS}[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return GenerationPipeline.from_run(write_latent_runs(tmp_path_factory.mktemp("latents"), quantizer))


def in_grey_levels(images: torch.Tensor) -> torch.Tensor:
    return (images.clamp(-1, 1) + 1) * 127.5


def test_images_are_decoded_from_the_generated_latents(flow: GenerationPipeline) -> None:
    labels, sampler = torch.tensor([1, 2, 3]), FlowSampler(guidance=1.5, steps=4)
    latents = flow.network.sample(labels, sampler, RowNoise(2, 4, 3, labels.device)).latents
    assert latents.shape == (3, 3, 2, 2)
    images = flow.images(labels, SamplerSettings(guidance=1.5, steps=4), 2, 4)
    expected = in_grey_levels(flow.tokenizer.decode(latents).image)
    assert images.dtype == torch.uint8 and (expected - images.permute(0, 3, 1, 2)).abs().max() <= 0.51
    with torch.autocast("cpu", torch.bfloat16):
        coarse = flow.network.sample(labels, sampler, RowNoise(2, 4, 3, labels.device)).latents
        again = flow.images(labels, sampler, 2, 4)
    expected = in_grey_levels(flow.tokenizer.decode(coarse).image)
    assert (expected - again.permute(0, 3, 1, 2)).abs().max() <= 0.51, "decoded in float32"


def test_latents_snap_to_the_points_of_the_quantizer(flow: GenerationPipeline) -> None:
    labels, sampler = torch.tensor([1, 2, 3]), FlowSampler(steps=4, snap=True)
    if flow.tokenizer.spec is None:
        with pytest.raises(ValueError, match="ContinuousBottleneck has no points to snap latents to: set sampler.snap"):
            flow.rules(sampler)
        return
    latents = flow.network.sample(labels, sampler, RowNoise(2, 0, 3, labels.device)).latents
    snapped = flow.tokenizer.snap(latents)
    assert not torch.equal(snapped, latents)
    expected = in_grey_levels(flow.tokenizer.decode(snapped).image)
    assert (expected - flow.images(labels, sampler, 2).permute(0, 3, 1, 2)).abs().max() <= 0.51


def test_rows_of_latents_do_not_depend_on_the_batch(flow: GenerationPipeline) -> None:
    sampler = FlowSampler(guidance=2.0, steps=3)
    images = pixels(flow.sample([3, "4", 9], seed=5, sampler=sampler))
    assert abs(images - pixels(flow.sample([3, 4, 9], seed=5, batch_size=2, sampler=sampler))).max() <= 1
    assert abs(images - pixels(flow.sample([3, 4, 9], seed=6, sampler=sampler))).max() > 1


def test_rules_of_the_other_family_are_rejected(flow: GenerationPipeline, generator: GenerationPipeline) -> None:
    with pytest.raises(ValueError, match="sampler.top_k is no rule of FlowSampler, by which this generator samples"):
        flow.sample([1], top_k=5)
    with pytest.raises(ValueError, match="sampler.steps is no rule of CategoricalSampler, by which this generator"):
        generator.sample([1], sampler=FlowSampler(steps=7))
    with pytest.raises(ValueError, match="guided_channels is 4, and the generator's latents have 3"):
        flow.rules(SamplerSettings(guided_channels=4))
    assert generator.rules(SamplerSettings(guidance=2.0, top_k=3)) == CategoricalSampler(guidance=2.0, top_k=3)
    assert flow.rules(SamplerSettings(guidance=2.0, snap=False)) == FlowSampler(guidance=2.0)


def test_images_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    run = write_latent_runs(tmp_path / "runs/digits", CONTINUOUS)
    pipeline = GenerationPipeline.from_run(run)
    with pytest.raises(UserError, match="decoded images are not finite: lower the guidance"):
        pipeline.decode(Tokens(latents=torch.full((1, *pipeline.tokenizer.latent_shape), torch.inf)))
    file = run / "checkpoints/last.ckpt"
    content = torch.load(file, weights_only=True)
    content["state_dict"]["generator.patch_embedding.bias"].fill_(torch.nan)
    torch.save(content, file)
    with pytest.raises(UserError, match="the generator's patch_embedding.bias in .*last.ckpt is not finite"):
        GenerationPipeline.from_run(run)


def test_half_precision_leaves_the_decoder_in_float32(run: Path, generator: GenerationPipeline) -> None:
    half = GenerationPipeline.from_run(run).to(torch.bfloat16)
    assert {weight.dtype for weight in half.network.parameters()} == {torch.bfloat16}
    for (name, weight), own in zip(
        half.tokenizer.state_dict().items(), generator.tokenizer.state_dict().values(), strict=True
    ):
        assert torch.equal(weight, own), name  # and not rounded on the way
    assert len(half.sample([0, 1])) == 2
    images = torch.rand(1, 3, half.tokenizer.image_size, half.tokenizer.image_size) * 2 - 1
    assert half.tokenizer(images.bfloat16())[0].image.dtype == torch.float32
    assert half.tokenizer.double().last_layer.dtype == torch.float64  # references of tests


def test_half_precision_draws_latents(flow: GenerationPipeline) -> None:
    half = copy.deepcopy(flow).to(torch.bfloat16)
    assert len(half.sample([0, 1], sampler=FlowSampler(guidance=2.0, steps=2))) == 2


def test_a_moved_run_finds_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_runs(Path("runs/digits"))
    expected = pixels(GenerationPipeline.from_run(run).sample([0]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # another working directory
    moved = tmp_path / run
    assert np.array_equal(pixels(GenerationPipeline.from_run(moved).sample([0])), expected)
    (tmp_path / "runs").rename(tmp_path / "archive")
    moved = tmp_path / "archive" / run.relative_to("runs")
    assert np.array_equal(pixels(GenerationPipeline.from_run(moved).sample([0])), expected)
    tokenizer = next((tmp_path / "archive").rglob("tokenizer*"))
    tokenizer.rename(tmp_path / "lost")
    with pytest.raises(MissingFileError, match=r"there is no checkpoint runs/.*name the present place .*tokenizer_run"):
        GenerationPipeline.from_run(moved)


def test_rounding_the_weights_once_keeps_the_flow_of_autocast(flow: GenerationPipeline) -> None:
    rounded, batch = copy.deepcopy(flow), (torch.tensor([1, 2]), FlowSampler(steps=2), 5)
    rounded.round_weights(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rounded.images(*batch), flow.images(*batch))
