"""The text tower over bytes, published text towers, and class vectors."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from polytoken.errors import MissingFileError, UserError
from polytoken.teachers import text_towers
from polytoken.teachers.class_vectors import ClassVectors
from polytoken.teachers.text import SmallTextTransformer
from polytoken.teachers.text_towers import PUBLISHED, open_text_tower
from polytoken.weights import save_state

CLASSES = {"b": "a cat", "a": "grass"}
PROMPTS = ["{}", "a photo of {}", "{}, close up"]


@pytest.fixture
def tower_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = SmallTextTransformer(width=16, depth=2, num_heads=2, context_length=24)
    network.save(tmp_path / "text.safetensors", "stand_in 12", CLASSES, PROMPTS)
    return tmp_path / "text.safetensors"


def test_a_text_does_not_depend_on_the_others(tower_file: Path) -> None:
    network, header = SmallTextTransformer.load(tower_file)
    texts = ["a cat", "é", "grass in the wind"]
    together = network(network.tokenize(texts))
    for text, row in zip(texts, together, strict=True):
        torch.testing.assert_close(network(network.tokenize([text]))[0], row)
    assert not torch.allclose(network(network.tokenize(["tac a"])), together[:1], atol=1e-4), "the order counts"
    assert list(header["classes"]) == ["b", "a"] and header["prompts"] == PROMPTS, "in the order of the labels"
    for text, count in (("", 0), ("é" * 13, 26)):
        with pytest.raises(UserError, match=f"has {count} bytes, and the text tower reads 1 to 24"):
            network.tokenize(["a", text])


def test_class_vectors_equal_a_reference_in_float64(tower_file: Path) -> None:
    tower = open_text_tower(str(tower_file))
    found = ClassVectors.of(tower, CLASSES, PROMPTS)
    for row, name in zip(found.vectors, CLASSES.values(), strict=True):
        embedded = [tower.embed([prompt.replace("{}", name)])[0].double().numpy() for prompt in PROMPTS]
        mean = np.mean([one / np.linalg.norm(one) for one in embedded], 0)
        np.testing.assert_allclose(row.numpy(), mean / np.linalg.norm(mean), atol=1e-6)
    assert (found.teacher, found.text_tower) == ("stand_in 12", str(tower_file))


def test_vectors_follow_the_labels_of_the_data(tower_file: Path, tmp_path: Path) -> None:
    vectors = ClassVectors.of(open_text_tower(str(tower_file)), CLASSES, PROMPTS)
    vectors.save(tmp_path / "classes.safetensors")
    loaded = ClassVectors.load(tmp_path / "classes.safetensors")
    assert loaded.classes == CLASSES and loaded.prompts == tuple(PROMPTS) and loaded.teacher == "stand_in 12"
    assert torch.equal(loaded.by_label({"a": 0, "b": 1}), vectors.vectors[[1, 0]])
    with pytest.raises(UserError, match="class 'c' has no class vector .*the 2 class vectors and 3 classes"):
        loaded.by_label({"a": 0, "b": 1, "c": 2})
    with pytest.raises(UserError, match="class 'b' is no class of the data set"):
        loaded.by_label({"a": 0})


def test_prompts_without_a_placeholder_are_refused(tower_file: Path) -> None:
    tower = open_text_tower(str(tower_file))
    for prompts, message in (
        (["{}", "a photo"], "prompt 'a photo' has no placeholder {}"),
        ([], "there are no prompts"),
    ):
        with pytest.raises(UserError, match=message):
            ClassVectors.of(tower, CLASSES, prompts)
    with pytest.raises(UserError, match="no classes"):
        ClassVectors.of(tower, {}, PROMPTS)


def test_broken_files_are_refused(tower_file: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no text tower none: name the text.safetensors .*siglip2_large"):
        open_text_tower("none")
    other = tmp_path / "other.safetensors"
    save_file({"vectors": torch.ones(1, 4)}, other)
    with pytest.raises(UserError, match="other.safetensors is not a text tower"):
        open_text_tower(str(other))
    with pytest.raises(UserError, match="other.safetensors does not hold class vectors"):
        ClassVectors.load(other)
    header = {"text_tower": '"a"', "teacher": '"b"', "classes": '{"x": "y"}', "prompts": "[]"}
    for vectors in (torch.ones(1, 4), torch.full((1, 4), float("nan")), torch.eye(2), torch.ones(())):
        save_file({"vectors": vectors}, other, header)
        with pytest.raises(UserError, match="does not hold a unit vector for each class"):
            ClassVectors.load(other)
    network, _ = SmallTextTransformer.load(tower_file)
    for width, message in ((24, "does not hold the network"), (10**9, r"width: expected int <= 8192")):
        architecture = {**network.architecture, "width": width}
        save_state(other, network, {"text_architecture": architecture, "teacher": "", "classes": {}, "prompts": []})
        with pytest.raises(UserError, match=message):
            SmallTextTransformer.load(other)


def test_a_published_tower_is_that_of_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small random model of SigLIP 2's class; its own tokenizer, which needs files, is replaced by CLIP's."""
    config = open_clip.get_model_config(PUBLISHED["siglip2_large"].split("/")[0])
    text = {**config["text_cfg"], "width": 16, "heads": 2, "layers": 1, "vocab_size": 49408}
    del text["hf_tokenizer_name"], text["tokenizer_kwargs"]
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none", "image_size": 32}
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(16, vision, text, init_logit_bias=-10)
    tokenize = open_clip.SimpleTokenizer(context_length=64)
    asked = []

    def create_model(name: str, pretrained: str, device: torch.device) -> open_clip.CustomTextCLIP:
        asked.append((name, pretrained))
        return model

    monkeypatch.setattr(text_towers, "find_spec", lambda name: object())
    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: tokenize)
    tower = open_text_tower("siglip2_large")
    assert asked == [("ViT-L-16-SigLIP2-384", "webli")] and tower.teacher == "siglip2_large"
    with torch.no_grad():
        expected = model.encode_text(tokenize(["a tench", "a photo of a cat"]))
    torch.testing.assert_close(tower.embed(["a tench", "a photo of a cat"]), expected)
    assert len(tower.classes) == 1000 and len(tower.prompts) == 80 and "a bad photo of a {}." in tower.prompts
    assert (tower.classes["n01440764"], tower.classes["n15075141"]) == ("tench", "toilet paper")


def test_a_published_tower_needs_transformers_and_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "get_tokenizer", unreachable)
    monkeypatch.setattr(text_towers, "find_spec", lambda name: object())
    with pytest.raises(MissingFileError, match="does not answer .no route to host.: run this where"):
        open_text_tower("siglip2_large")
    monkeypatch.setattr(text_towers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs transformers"):
        open_text_tower("siglip2_large_256")
