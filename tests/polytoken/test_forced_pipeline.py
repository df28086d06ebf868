"""The generation pipeline with reference images."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.pipeline import GenerationPipeline
from polytoken.sampling import CategoricalSampler, Forcing
from tests.support.generated import pixels, write_next_scale_runs, write_runs


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> GenerationPipeline:
    return GenerationPipeline.from_run(write_next_scale_runs(tmp_path_factory.mktemp("runs") / "digits"))


def references(count: int, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("forced_sub_code", [0, 1])
def test_the_codes_of_the_reference_are_written(pipeline: GenerationPipeline, forced_sub_code: int) -> None:
    images, labels, rules = references(3), torch.tensor([1, 2, 3]), CategoricalSampler(guidance=1.5)
    forced = pipeline.force(images, Forcing((forced_sub_code,), 2.0))
    expected = pipeline.tokenizer.encode(images).codes
    drawn = pipeline.draw(labels, rules, forced=forced).codes
    assert not drawn.is_inference() and not forced.codes.is_inference(), "training may read them"
    assert torch.equal(drawn[:, forced_sub_code], expected[:, forced_sub_code])
    assert not torch.equal(drawn[:, 1 - forced_sub_code], expected[:, 1 - forced_sub_code])
    alone = pipeline.tokenizer.decode(
        pipeline.tokenizer.keep_subspaces(pipeline.tokenizer.embed_codes(expected), [forced_sub_code])
    ).image
    found = pipeline.forced_alone(forced).permute(0, 3, 1, 2)
    assert ((alone.clamp(-1, 1) + 1) * 127.5 - found).abs().max() <= 0.51


def test_images_depend_on_reference_and_class_but_not_the_batch(pipeline: GenerationPipeline) -> None:
    images = references(4)
    drawn = pixels(pipeline.sample([3, "3", 4, 9], guidance=2.0, references=images, forcing=Forcing(guidance=2.0)))
    again = pipeline.sample([3, 3, 4, 9], 2.0, batch_size=3, references=images, forcing=Forcing(guidance=2.0))
    assert abs(drawn - pixels(again)).max() <= 1
    other = pixels(pipeline.sample([3, 3, 5, 9], 2.0, references=images[[1, 1, 2, 3]], forcing=Forcing(guidance=2.0)))
    assert abs(other - drawn)[0].max() > 1 and abs(other - drawn)[2].max() > 1, "reference 0 and class 2 differ"
    assert abs(other - drawn)[[1, 3]].max() <= 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"references": references(1, 16)}, "are 3 × 16 × 16 and the tokenizer reads 3 × 32 × 32: resize them"),
        ({"references": references(1)[:, :1]}, "are 1 × 32 × 32 and the tokenizer reads 3 × 32 × 32"),
        ({"references": references(1) * torch.nan}, r"reference images leave \[-1, 1\]: polytoken.images.read_image"),
        ({"references": (127 * references(1)).byte()}, r"reference images leave \[-1, 1\]"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"references": references(2)}, "2 reference images for 1 classes: give one an image"),
        ({"forcing": Forcing()}, "forcing needs the images whose sub-codes are forced: give references"),
        ({"references": references(1), "forcing": Forcing((2,))}, "names 2, and the generator writes"),
        ({"references": references(1), "forcing": Forcing((0, 1))}, "nothing would be left to sample"),
    ],
)
def test_bad_input_is_one_sentence(pipeline: GenerationPipeline, arguments: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        pipeline.sample([3], **arguments)


def test_other_generators_and_heads_are_refused(tmp_path: Path) -> None:
    other = GenerationPipeline.from_run(write_runs(tmp_path / "other"))
    with pytest.raises(
        UserError, match="AutoregressiveGenerator cannot be forced .*: take a run of NextScaleGenerator"
    ):
        other.sample([3], references=references(1, 16))
    head = GenerationPipeline.from_run(write_next_scale_runs(tmp_path / "masked", "MaskedBitHead"))
    with pytest.raises(UserError, match="MaskedBitHead writes"):
        head.forced_places(Forcing())
