"""Settings of the published models: size, normalisation, prefix tokens, activation, norm."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from polytoken.classifier import SmallClassifier
from polytoken.errors import UserError
from polytoken.frozen import FrozenNetwork
from polytoken.teachers import FOUNDATION_MODELS, Teacher, build_network, published_model
from polytoken.teachers.stand_in import SmallVisionTransformer
from polytoken.weights import load_state, save_tensors
from tests.support.host_sync import host_syncs

TIMM = [name for name, model in FOUNDATION_MODELS.items() if model.library == "timm" and not model.levels]


def stand_in(path: Path, **architecture) -> Path:
    torch.manual_seed(0)
    SmallVisionTransformer(**{"image_size": 16, "patch_size": 8, "width": 16, "depth": 2} | architecture).save(path)
    return path


@pytest.mark.parametrize("name", TIMM)
def test_the_table_agrees_with_timm(name: str) -> None:
    import timm

    model = FOUNDATION_MODELS[name]
    published = timm.get_pretrained_cfg(model.model)
    assert (tuple(published.mean), tuple(published.std)) == model.normalization
    with torch.device("meta"):
        network = build_network(model, model.image_size, pretrained=False)
    assert network.num_prefix_tokens == model.prefix_tokens
    assert (network.embed_dim, len(network.blocks)) == (model.width, model.depth)
    assert (getattr(network, "attn_pool", None) is not None) == model.attention_pooling
    activation = type(network.blocks[0].mlp.act).__name__
    assert (activation == "QuickGELU") == ("openai" in model.model), "OpenAI's CLIP needs QuickGELU"

    teacher = Teacher(name)
    inputs = torch.empty(2, 3, model.image_size, model.image_size, device="meta")
    ((prefix, patches),) = teacher._tokens(network.eval(), inputs, [None])
    assert prefix.shape == (2, model.prefix_tokens, model.width)
    assert patches.shape == (2, teacher.grid[0] * teacher.grid[1], model.width)


def test_a_model_of_timm_that_is_not_in_the_table() -> None:
    """The settings are those that the table states for the same model."""
    for name in ("siglip2_large", "dinov2_base_registers", "dinov3_large"):
        stated = FOUNDATION_MODELS[name]
        found = published_model(f"timm/{stated.model}")
        assert replace(found, image_size=stated.image_size) == stated
    assert Teacher("timm/vit_small_patch16_224.dino").grid == (14, 14)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_small", "no teacher is called 'vit_small': take stand_in, one of clip_base_16"),
        ("timm/nothing", "timm has no pretrained model 'nothing'"),
        ("timm/vit_small_patch16_224.nobody", "timm has no pretrained model 'vit_small_patch16_224.nobody'"),
        ("timm/resnet18.a1_in1k", "is a ResNet: take a vision transformer"),
        ("timm/vit_tiny_r_s16_p8_224.augreg_in21k", "is a VisionTransformer: take a vision transformer whose"),
        ("timm/swin_tiny_patch4_window7_224.ms_in1k", "is a SwinTransformer: take a vision transformer"),
    ],
)
def test_a_name_that_no_model_has(name: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Teacher(name)


@pytest.mark.parametrize("name", FOUNDATION_MODELS)
def test_transform_resizes_and_normalises(name: str) -> None:
    teacher = Teacher(name)
    mean, deviation = FOUNDATION_MODELS[name].normalization
    values = torch.tensor([-0.5, 0.0, 0.5]).view(1, 3, 1, 1)
    inputs = teacher.transform(values.expand(1, 3, 64, 64))
    assert inputs.shape == (1, 3, teacher.image_size, teacher.image_size)
    for channel, value in enumerate((0.25, 0.5, 0.75)):
        expected = (value - mean[channel]) / deviation[channel]
        assert inputs[0, channel].mean().item() == pytest.approx(expected, abs=1e-5)


def test_transform_does_not_synchronise_with_the_host() -> None:
    teacher, images = Teacher("dinov2_small"), torch.zeros(1, 3, 32, 32)
    teacher.transform(images)  # the first call uploads constants
    with host_syncs() as counts:
        teacher.transform(images)
    assert not counts


def test_transform_clamps_bicubic_overshoot() -> None:
    edge = torch.ones(1, 3, 32, 32)
    edge[..., 16:] = -1
    inputs = Teacher("siglip2_large").transform(edge)
    assert inputs.abs().max() <= 1


@pytest.mark.parametrize(("name", "normalised"), [("dino_small_16", True), ("clip_base_16", False)])
def test_features_from_a_local_file(name: str, normalised: bool, tmp_path: Path) -> None:
    """DINO is read after its last norm, CLIP before it; class token and patches are separated."""
    torch.manual_seed(0)
    network = build_network(FOUNDATION_MODELS[name], 32, pretrained=False).eval()
    torch.nn.init.uniform_(network.norm.weight, 0.5, 2.0)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    foreign = {**state, "head.weight": torch.zeros(1)}  # an unused head, and a header as hubs write it
    save_file(foreign, tmp_path / "weights.safetensors", {"format": "pt"})
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    teacher = Teacher(name, str(tmp_path / "weights.safetensors"), image_size=32)
    (features,) = teacher.features(images)
    with torch.no_grad():
        tokens = network.norm_pre(network._pos_embed(network.patch_embed(teacher.transform(images))))
        for block in network.blocks:
            tokens = block(tokens)
        tokens = network.norm(tokens) if normalised else tokens
    torch.testing.assert_close(features.cls, tokens[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.patches, tokens[:, 1:].unflatten(1, (2, 2)), atol=1e-5, rtol=1e-4)
    assert not features.cls.requires_grad


def test_positions_of_a_local_file_are_resampled(tmp_path: Path) -> None:
    """A file saved at 32 px loads at 48 px, as timm's own hub files do."""
    from timm.layers import resample_abs_pos_embed

    state = build_network(FOUNDATION_MODELS["dino_small_16"], 32, pretrained=False).state_dict()
    torch.nn.init.normal_(state["pos_embed"])
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "weights.safetensors")
    teacher = Teacher("dino_small_16", str(tmp_path / "weights.safetensors"), image_size=48)
    teacher.prepare(torch.device("cpu"))
    expected = resample_abs_pos_embed(state["pos_embed"], [3, 3], num_prefix_tokens=1)
    torch.testing.assert_close(teacher._network.on(torch.device("cpu")).pos_embed.data, expected)


def test_open_clip_and_timm_agree_on_the_interface() -> None:
    name = "open_clip_base_16"
    teacher = Teacher(name, image_size=32)
    network = build_network(FOUNDATION_MODELS[name], 32, pretrained=False)
    teacher._network = FrozenNetwork(lambda: network)
    features, raw, last = teacher.features(torch.zeros(2, 3, 32, 32), [None, 3, 12])
    assert features.cls.shape == (2, 768)
    assert features.patches.shape == (2, 2, 2, 768)
    assert torch.equal(features.patches, last.patches), "CLIP is read before its last norm"
    assert not torch.equal(raw.patches, last.patches)
    assert "QuickGELU" in repr(network)


def test_features_of_any_block(tmp_path: Path) -> None:
    path = stand_in(tmp_path / "mid.safetensors", pooling="mean")
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    trunk = SmallVisionTransformer.load(path).trunk
    expected = trunk.blocks[0](trunk._pos_embed(trunk.patch_embed(images)))
    (first,) = Teacher("stand_in", str(path), block=1).features(images)
    torch.testing.assert_close(first.patches.flatten(1, 2), expected)
    torch.testing.assert_close(first.cls, expected.mean(1))  # no class token: the mean of the patches
    last, again = Teacher("stand_in", str(path)).features(images, [None, 1])
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True)), (
        "one pass equals single passes"
    )
    torch.testing.assert_close(
        last.patches.flatten(1, 2),
        functional.layer_norm(trunk.blocks[1](expected), (16,), trunk.norm.weight, trunk.norm.bias, trunk.norm.eps),
    )


def test_the_identity_has_name_and_digest(tmp_path: Path) -> None:
    first, again = (Teacher("stand_in", str(stand_in(tmp_path / f"{name}.safetensors"))) for name in ("one", "two"))
    assert first.identity == again.identity and first.identity.startswith("stand_in ")
    state, header = load_state(tmp_path / "one.safetensors", "")
    state["trunk.norm.bias"][0] += 1
    save_tensors(tmp_path / "two.safetensors", state, header)
    assert Teacher("stand_in", str(tmp_path / "two.safetensors")).identity != first.identity


def test_building_a_teacher_draws_no_random_numbers(tmp_path: Path) -> None:
    path = stand_in(tmp_path / "high.safetensors")
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    Teacher("stand_in", str(path)).prepare(torch.device("cpu"))
    assert torch.rand(1) == expected


def test_invalid_settings_are_rejected_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no teacher is called 'clip': take stand_in, one of clip_base_16"):
        Teacher("clip")
    with pytest.raises(ValueError, match="multiple of its patch size 14"):
        Teacher("dinov2_small", image_size=256)
    with pytest.raises(ValueError, match="block 13 .* blocks 0 to 12"):
        Teacher("dinov2_small", block=13)
    with pytest.raises(ValueError, match="make teacher"):
        Teacher("stand_in")
    with pytest.raises(FileNotFoundError, match="make teacher"):
        Teacher("stand_in", str(tmp_path / "none.safetensors")).prepare(torch.device("cpu"))
    with pytest.raises(FileNotFoundError, match="make weights TEACHERS=dinov2_small"):
        Teacher("dinov2_small", str(tmp_path / "none.safetensors")).prepare(torch.device("cpu"))


@pytest.mark.parametrize("change", ["width", "lack"])
def test_a_stand_in_must_match_its_header(change: str, tmp_path: Path) -> None:
    """Raised on connect, with the remedy for a stand-in; a missing file likewise."""
    path = stand_in(tmp_path / "high.safetensors")
    state, header = load_state(path, "")
    if change == "width":
        state, _ = load_state(stand_in(tmp_path / "wide.safetensors", width=24), "")
    else:
        state.pop("trunk.norm.weight")
    save_tensors(path, state, header)
    message = "trunk.* of shape .*not the network" if change == "width" else "lacks trunk.norm.weight.*not the network"
    with pytest.raises(ValueError, match=f"{message} its header describes; run `make teacher"):
        Teacher("stand_in", str(path)).check()
    with pytest.raises(FileNotFoundError, match="make teacher"):
        Teacher("stand_in", str(tmp_path / "none.safetensors")).check()


@pytest.mark.parametrize("name", ["dinov2_small", "open_clip_base_16"])
def test_a_published_file_is_checked_by_its_shapes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger model of the family has the same names; positions of another image size are accepted."""
    monkeypatch.chdir(tmp_path)
    Path("weights").mkdir()
    model = FOUNDATION_MODELS[name]
    with torch.device("meta"):
        shapes = {
            key: tensor.shape for key, tensor in build_network(model, 4 * model.patch_size, False).state_dict().items()
        }
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}  # one number per tensor on disk
    random_state = torch.get_rng_state()
    torch.save(state, "right.pth")
    Teacher(name, "right.pth").check()
    first = next(key for key in state if key.endswith("norm1.weight") or key.endswith("ln_1.weight"))
    state[first] = torch.zeros(1).expand(2 * model.width)
    torch.save(state, "wrong.pth")
    with pytest.raises(ValueError, match=rf"{first} of shape .*not \({model.width},\).*make weights TEACHERS={name}"):
        Teacher(name, "wrong.pth").check()
    assert torch.equal(torch.get_rng_state(), random_state)
    save_file({"a": torch.zeros(1)}, f"weights/{name}.safetensors")
    with pytest.raises(ValueError, match=f"weights/{name}.safetensors lacks"):  # the default file
        Teacher(name).check()
    Teacher("dino_small_16").check()  # on a hub: checked when loaded


def test_a_file_of_another_architecture_is_rejected(tmp_path: Path) -> None:
    SmallClassifier(10, (4, 4)).save(tmp_path / "judge.safetensors", accuracy=0.5)
    with pytest.raises(ValueError, match=r"judge.safetensors is not a stand-in teacher"):
        Teacher("stand_in", str(tmp_path / "judge.safetensors")).prepare(torch.device("cpu"))
    foreign = Teacher("dino_small_16", str(tmp_path / "judge.safetensors"))
    for look in (
        foreign.check,
        lambda: foreign.prepare(torch.device("cpu")),
    ):  # on construction and on loading
        with pytest.raises(ValueError, match="it is not vit_small_patch16_224.dino"):
            look()


def test_missing_file_and_network_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def unreachable(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(FileNotFoundError, match="make weights TEACHERS=dinov2_small"):
        Teacher("dinov2_small").prepare(torch.device("cpu"))


def test_a_published_model_reads_images_of_the_size_that_gives_a_grid() -> None:
    teacher = Teacher("dinov2_small", block=3)
    assert (teacher.for_grid((16, 16)).image_size, teacher.for_grid((32, 32)).image_size) == (224, 448)
    assert teacher.for_grid((4, 4)).block == 3 and teacher.for_grid((4, 4)).name == "dinov2_small"
    sized = Teacher("dinov2_small", image_size=56)
    assert sized.for_grid((16, 16)) is sized and teacher.for_grid((2, 4)) is teacher


def test_the_digest_does_not_depend_on_the_image_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "dino.safetensors"
    save_file(
        {
            key: value.contiguous()
            for key, value in build_network(FOUNDATION_MODELS["dino_small_16"], 32, False).state_dict().items()
        },
        path,
    )
    small, large = (Teacher("dino_small_16", str(path), size) for size in (32, 64))
    assert small.identity == large.identity
