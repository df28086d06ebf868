"""Zero-shot classification of a tokenizer's run: its output, and input that does not fit."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional

from commands import class_vectors, zero_shot
from commands.preset import image_data, real_images
from polytoken.loading import load_tokenizer
from polytoken.teachers import SmallVisionTransformer, Teacher
from polytoken.teachers.class_vectors import ClassVectors
from polytoken.teachers.text import SmallTextTransformer
from tests.commands.test_measuring import check_record
from tests.commands.test_probe import DATA
from tests.support.generated import write_representation_run, write_runs

DIGITS = dict(zip("0123456789", "zero one two three four five six seven eight nine".split(), strict=True))


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A dual encoder of random weights, and class vectors."""
    torch.manual_seed(1)
    folder = tmp_path / "runs/digits/teacher"
    folder.mkdir(parents=True)
    image = SmallVisionTransformer(16, patch_size=8, width=32, depth=3, num_heads=4, pooling="attention")
    image.save(folder / "dual.safetensors")
    write_text(folder / "text.safetensors", folder / "dual.safetensors")
    class_vectors.main(["--text", str(folder / "text.safetensors")])
    return folder


def write_text(file: Path, image: Path, width: int = 32) -> None:
    text = SmallTextTransformer(width, depth=1, num_heads=4)
    text.save(file, Teacher("stand_in", str(image)).identity, DIGITS, ["{}", "the digit {}"])


def write_run(teacher: Path, name: str = "ideal", **foundation: object) -> Path:
    settings = {"name": "stand_in", "weights": str(teacher / "dual.safetensors"), **foundation}
    run = write_representation_run(teacher.parent / "tokenizer" / name, settings)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": DATA}))
    return run


def test_decoded_features_next_to_the_untouched_model(teacher: Path, capsys: pytest.CaptureFixture) -> None:
    run, file = write_run(teacher), teacher / "classes.safetensors"
    zero_shot.main(["--run", str(run), "--classes", str(file), "--max-images", "150"])
    result = json.loads((run / "zero_shot.json").read_text())
    tokenizer, data = load_tokenizer(run), image_data(run / "config.yaml")
    batches = list(real_images(data, "validation", [row * 355 // 150 for row in range(150)]))
    images, labels = (torch.cat([batch[key] for batch in batches]) for key in ("image", "label"))
    decoded, encoding = tokenizer(images)
    vectors = ClassVectors.load(file).by_label(data.class_to_idx)
    rows = {row["features"]: row for row in result["rows"]}
    assert list(rows) == ["foundation model", "decoded"]
    for name, maps in (("foundation model", encoding.features), ("decoded", decoded.features)):
        pooled = tokenizer.foundation.pool(maps["deep"].permute(0, 2, 3, 1))
        order = (functional.normalize(pooled, dim=-1) @ vectors.T).argsort(dim=1, descending=True)
        for rank in (1, 5):
            share = (order[:, :rank] == labels[:, None]).any(1).double().mean().item()
            assert rows[name][f"top{rank}"] == pytest.approx(share, abs=0.01)
    assert (result["n"], result["num_classes"]) == (150, 10)
    assert result["class_vectors"]["num_prompts"] == 2 and result["teacher"].startswith("stand_in ")
    printed = " ".join(capsys.readouterr().out.split())
    assert "classification of 150 validation images into 10 classes by 2 prompts of" in printed


def test_the_record_is_of_the_measured_weights(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, file = write_run(teacher), teacher / "classes.safetensors"
    check_record(run, lambda run: zero_shot.zero_shot(run, file, 9), monkeypatch)


def test_unreadable_images_are_not_counted(teacher: Path, tmp_path: Path) -> None:
    for name in DIGITS:
        for file in (f"train/{name}/0.png", f"val/{name}/0.png", f"val/{name}/1.png"):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (25 * int(name), 0, 0)).save(tmp_path / file)
    (tmp_path / "val/3/1.png").write_bytes(b"damaged")
    run = write_run(teacher)
    source = {"class_path": "datamodules.FolderSource", "init_args": {"root": str(tmp_path)}}
    settings = {**DATA["init_args"], "source": source, "max_bad_fraction": 0.5}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {**DATA, "init_args": settings}}))
    assert zero_shot.zero_shot(run, teacher / "classes.safetensors")["n"] == 19


def test_a_single_layer_is_shown_next_to_the_whole_model(teacher: Path) -> None:
    run = write_run(teacher, "layer", block=1, final_norm=True)
    result = zero_shot.zero_shot(run, teacher / "classes.safetensors", 150)
    assert [row["features"] for row in result["rows"]] == ["foundation model", "its block 1", "decoded"]
    whole = zero_shot.zero_shot(write_run(teacher), teacher / "classes.safetensors", 150)
    assert result["rows"][0] == whole["rows"][0] and result["rows"][1] != whole["rows"][0]


def test_names_and_prompts_from_files(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text("".join(f"{key}: {name}\n" for key, name in DIGITS.items()))
    (tmp_path / "prompts.txt").write_text("a {}\n\nthe {}!\nno {}\n")
    arguments = ["--text", str(teacher / "text.safetensors"), "--output", str(tmp_path / "new/mine.safetensors")]
    files = ["--classes", str(tmp_path / "names.yaml"), "--prompts", str(tmp_path / "prompts.txt")]
    class_vectors.main([*arguments, *files])
    found = ClassVectors.load(tmp_path / "new/mine.safetensors")
    assert found.prompts == ("a {}", "the {}!", "no {}") and found.classes == DIGITS
    assert not torch.equal(found.vectors, ClassVectors.load(teacher / "classes.safetensors").vectors)


def refusal(capsys: pytest.CaptureFixture, program: object, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        program.main([str(one) for one in arguments])  # type: ignore[attr-defined]
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_what_does_not_fit_is_refused(teacher: Path, capsys: pytest.CaptureFixture) -> None:
    file = teacher / "classes.safetensors"
    tower = teacher / "text.safetensors"
    said = refusal(capsys, class_vectors, "--text", tower, "--output", tower)
    assert f"--output is {tower}, the text tower itself: name another file" in said
    write_runs(teacher.parent)
    conventional = teacher.parent / "tokenizer/tiny"
    arguments = ("--classes", file)
    assert "ConvolutionalTokenizer, which decodes no features" in refusal(
        capsys, zero_shot, "--run", conventional, *arguments
    )
    run = write_run(teacher)
    assert "--max-images is 0" in refusal(capsys, zero_shot, "--run", run, *arguments, "--max-images", 0)
    assert "no weights at none: write it by" in refusal(capsys, zero_shot, "--run", run, "--classes", "none")
    wide = teacher / "wide.safetensors"
    write_text(teacher / "text.safetensors", teacher / "dual.safetensors", width=16)
    class_vectors.main(["--text", str(teacher / "text.safetensors"), "--output", str(wide)])
    assert "vectors of width 16, and the foundation model stand_in has width 32" in refusal(
        capsys, zero_shot, "--run", run, "--classes", wide
    )
    (run / "config.yaml").write_text(
        yaml.safe_dump(
            {"data": {**DATA, "init_args": {"source": {"class_path": "datamodules.PhotosSource"}, "image_size": 16}}}
        )
    )
    assert "class '0' is no class of the data set" in refusal(capsys, zero_shot, "--run", run, *arguments)
    # another image tower of the same size
    SmallVisionTransformer(16, patch_size=8, width=32, depth=3, num_heads=4, pooling="attention").save(
        teacher / "dual.safetensors"
    )
    assert "holds vectors of a text tower of stand_in" in refusal(capsys, zero_shot, "--run", run, *arguments)
    SmallVisionTransformer(16, patch_size=8, width=32, depth=3, num_heads=4).save(teacher / "dual.safetensors")
    assert "has no attention pooling" in refusal(capsys, zero_shot, "--run", run, *arguments)
    assert not (run / "zero_shot.json").exists()


@pytest.mark.parametrize(
    ("classes", "prompts", "says"),
    [
        (None, "a photo\n", r"prompts.txt: the prompt 'a photo' has no placeholder {}"),
        (None, "\n", "prompts.txt: there are no prompts"),
        ("- a\n", None, "names.yaml is not a mapping"),
        ("a: [", None, "this is not YAML"),
        ("a: 1\n", None, "names.yaml has 'a': 1, which is no class with its name"),
        ("no: b\n", None, "names.yaml has False: 'b'"),
        (b"\xff", None, "this is not YAML: not UTF-8 text"),
    ],
)
def test_unusable_files_are_refused(
    classes: str | bytes | None, prompts: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--text", tmp_path / "text.safetensors"]
    for option, name, content in (("--classes", "names.yaml", classes), ("--prompts", "prompts.txt", prompts)):
        if content is not None:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
            options += [option, tmp_path / name]
    assert says in refusal(capsys, class_vectors, *options)
