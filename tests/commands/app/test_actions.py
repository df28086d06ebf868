"""Actions of the page, and what it loads; none of them needs Gradio."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from commands.app import actions
from commands.app.actions import CodeIndex, Place, encode, exchange, place_at
from commands.app.explored import Explored
from polytoken.errors import MissingFileError, UserError
from polytoken.pipeline import GenerationPipeline
from polytoken.pretrained import save_pretrained
from polytoken.sampling import CategoricalSampler, FlowSampler
from polytoken.specs import TokenSpec
from tests.support.generated import (
    CONTINUOUS,
    configure,
    write_latent_runs,
    write_next_scale_runs,
    write_runs,
)
from tests.support.tokenizers import tiny_scales, tiny_tokenizer

EVERYWHERE = torch.ones(2, 2, dtype=torch.bool)


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_reconstruction_keeps_the_chosen_subspaces() -> None:
    tokenizer, (image,) = tiny_tokenizer(), images(1).split(1)
    whole = actions.reconstruct(tokenizer, image, [0, 1])
    expected, encoding = tokenizer.eval()(image)
    torch.testing.assert_close(whole.image, expected.image)
    part = actions.reconstruct(tokenizer, image, [1])
    torch.testing.assert_close(part.image, tokenizer.decode(tokenizer.keep_subspaces(encoding.quantized, [1])).image)
    rounded = [(one.clamp(-1, 1) * 127.5 + 128).floor().clamp(0, 255).double() for one in (part.image, image)]
    assert part.psnr == pytest.approx(float(10 * torch.log10(255**2 / (rounded[0] - rounded[1]).square().mean())))


def test_codes_are_exchanged_in_the_region_and_sub_code_alone() -> None:
    spec = TokenSpec((9, 9), ((2, 2),))
    own, other = torch.zeros(1, 2, 4, dtype=torch.int64), torch.arange(1, 9).view(1, 2, 4)
    region = torch.tensor([[True, False], [False, True]])
    assert exchange(own, other, spec, [1], region).tolist() == [[[0, 0, 0, 0], [5, 0, 0, 8]]]
    assert exchange(own, other, spec, [], EVERYWHERE).equal(own)
    assert exchange(own, other, spec, [0, 1], EVERYWHERE).equal(other)


def test_a_coarse_code_is_exchanged_with_half_of_its_patches() -> None:
    spec = TokenSpec((9,), ((1, 1), (2, 2)))
    own, other = torch.zeros(1, 1, 5, dtype=torch.int64), torch.ones(1, 1, 5, dtype=torch.int64)
    one, two = torch.tensor([[True, False], [False, False]]), torch.tensor([[True, True], [False, False]])
    assert exchange(own, other, spec, [0], one).flatten().tolist() == [0, 1, 0, 0, 0]
    assert exchange(own, other, spec, [0], two).flatten().tolist() == [1, 1, 1, 0, 0]


def test_an_edit_decodes_the_exchanged_codes() -> None:
    tokenizer = tiny_tokenizer().eval()
    first, second = images().split(1)
    edited = actions.edit(tokenizer, first, second, [[], [0]], EVERYWHERE)
    codes = torch.stack([encode(tokenizer, second).codes[:, 0], encode(tokenizer, first).codes[:, 1]], dim=1)
    torch.testing.assert_close(edited[:1], actions.reconstruct(tokenizer, first, [0, 1]).image)
    torch.testing.assert_close(edited[1:], tokenizer.decode_codes(codes))


def test_places_of_several_scales() -> None:
    spec = TokenSpec((9,), ((1, 1), (2, 2), (3, 3)))
    place = place_at(spec, 2, 0.99, 0.4)
    assert place == Place(2, 1, 2) and place.position(spec) == 1 + 4 + 5
    assert place.box(spec, 16) == (5, 10, 10, 16)
    assert place_at(spec, 0, 0.7, 0.7).box(spec, 16) == (0, 16, 0, 16)


@pytest.mark.parametrize("build", [tiny_tokenizer, tiny_scales])
def test_neighbours_have_the_same_code_nearest_first(build) -> None:
    tokenizer, many = build().eval(), images(12)
    spec = tokenizer.require_codes()
    index = CodeIndex.of(encode(tokenizer, part) for part in many.split(5))
    place = Place(len(spec.scales) - 1, 1, 0)
    query = encode(tokenizer, many[3:4])
    count, found = index.nearest(query, spec, 1, place, 5)
    code = int(query.codes[0, 1, place.position(spec)])
    first = Place(place.scale, 0, 0).position(spec)
    assert count == int((index.codes[:, 1, first:] == code).sum()) and len(found) == min(count, 5)
    assert found[0].image == 3 and found[0].place == place and found[0].distance == pytest.approx(0, abs=1e-5)
    assert all(int(index.codes[one.image, 1, one.place.position(spec)]) == code for one in found)
    assert [one.distance for one in found] == sorted(one.distance for one in found)


def test_generation_draws_what_the_pipeline_draws(tmp_path: Path) -> None:
    pipeline = GenerationPipeline.from_run(write_runs(tmp_path))
    rules = CategoricalSampler(guidance=[2.0, 1.0], top_k=[3, 16])
    drawn = actions.generate(pipeline, [3, 1], rules, 5)
    assert drawn.images.equal(pipeline.images(torch.tensor([3, 1]), rules, 5))
    assert drawn.steps == 4 and drawn.seconds > 0


def test_steps_of_each_family(tmp_path: Path) -> None:
    flow = GenerationPipeline.from_run(write_latent_runs(tmp_path / "flow", CONTINUOUS))
    assert actions.num_steps(flow, FlowSampler(steps=7)) == 7
    assert actions.num_steps(flow, FlowSampler(steps=7, method="heun")) == 14
    scales = GenerationPipeline.from_run(write_next_scale_runs(tmp_path / "scales"))
    assert actions.num_steps(scales, CategoricalSampler()) == 3


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A generator's run, whose tokenizer names the digits."""
    return configure(write_runs(tmp_path / "runs/digits", image_size=32))


def test_a_generator_brings_its_tokenizer_and_images(run: Path) -> None:
    explored = Explored.load(None, run, max_images=7)
    assert explored.images.shape == (7, 3, 32, 32) and len(explored.labels) == 7
    assert explored.pipeline is not None and explored.pipeline.tokenizer is explored.tokenizer
    assert explored.codes is not None and explored.codes.codes.shape == (7, 2, 16)
    assert explored.image(3).shape == (1, 3, 32, 32) and explored.note == ""


def test_exported_folders_and_moved_tokenizers(run: Path, tmp_path: Path) -> None:
    tokenizer = run.parent.parent / "tokenizer/tiny"
    save_pretrained(run, tmp_path / "pipeline")
    save_pretrained(tokenizer, tmp_path / "alone")
    whole = Explored.load(tmp_path / "pipeline")
    assert whole.pipeline is not None and "No validation images" in whole.note and whole.codes is None
    assert Explored.load(tmp_path / "alone").pipeline is None
    assert Explored.load(tmp_path / "alone", run, preset="digits", max_images=3).images.shape[0] == 3
    tokenizer.rename(tmp_path / "moved")
    assert Explored.load(tmp_path / "moved", run, max_images=3).images.shape[0] == 3


def test_a_tokenizer_without_codes_has_images_alone(tmp_path: Path) -> None:
    run = configure(write_latent_runs(tmp_path / "runs/digits", CONTINUOUS, image_size=32))
    explored = Explored.load(run.parent.parent / "tokenizer/tiny", max_images=3)
    assert explored.codes is None and len(explored.images) == 3 and explored.pipeline is None


def test_what_is_missing_or_does_not_fit_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to explore"):
        Explored.load(None)
    with pytest.raises(MissingFileError, match="make tokenizer"):
        Explored.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a tokenizer"):
        Explored.load(None, run.parent.parent / "tokenizer/tiny")
    other = write_runs(tmp_path / "other", num_subspaces=3, image_size=32).parent.parent / "tokenizer/tiny"
    save_pretrained(other, tmp_path / "export")
    for tokenizer in (other, tmp_path / "export"):
        with pytest.raises(UserError, match="another tokenizer|with the fingerprint"):
            Explored.load(tokenizer, run)
    with pytest.raises(UserError, match="no preset"):
        Explored.load(None, run, preset="nothing")
