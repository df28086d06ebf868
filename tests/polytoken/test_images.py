from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from datamodules.transforms import EvaluationTransform
from polytoken.errors import RunError, UserError
from polytoken.images import (
    FORMATS,
    MAX_ASPECT,
    UNREADABLE,
    from_uint8,
    open_image,
    read_image,
    resize_displayed,
    resize_short_side,
    save_png,
    to_rgb,
    to_tensor,
    to_uint8,
    write_image,
)

REPOSITORY = Path(__file__).parents[2]


def test_8_bits_survive_the_conversion_to_floats_and_back() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(values)), values)
    assert from_uint8(values)[[0, 255]].tolist() == [-1, 1]
    assert to_uint8(torch.tensor([-3.0, 3.0, float("inf")])).tolist() == [0, 255, 255]


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_decoded_from_a_file_and_from_bytes(kind: str, tmp_path: Path) -> None:
    pixels = np.full((4, 6, 3), 200, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image", format=kind)
    for source in (tmp_path / "image", str(tmp_path / "image"), (tmp_path / "image").read_bytes()):
        assert open_image(source).size == (6, 4)


def test_other_formats_are_rejected_under_any_file_name(tmp_path: Path) -> None:
    for kind in ("EPS", "ICO", "TGA", "PDF"):
        Image.new("RGB", (4, 4)).save(tmp_path / "image.png", format=kind)
        with pytest.raises(UnidentifiedImageError):
            open_image(tmp_path / "image.png")


def test_images_are_written_atomically(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    save_png(tmp_path / "new" / "grid.png", pixels)
    before = (tmp_path / "new" / "grid.png").read_bytes()
    assert np.array_equal(np.asarray(open_image(before)), pixels)
    (tmp_path / "new" / "grid.png.partial").symlink_to("/dev/full")
    with pytest.raises(RunError, match="grid.png cannot be written: No space left on device"):
        save_png(tmp_path / "new" / "grid.png", pixels[::-1])
    assert (tmp_path / "new" / "grid.png").read_bytes() == before


def test_images_are_opened_in_one_module() -> None:
    own = [path for path in REPOSITORY.rglob("*.py") if not {".venv", "tests", "runs", "benchmarks"} & set(path.parts)]
    opened = r"\bImage\.open\(|imread\(|torchvision\S* import .*read_image|\bio\.read_image\("
    found = [path for path in own if re.search(opened, path.read_text())]
    assert found == [REPOSITORY / "polytoken/images.py"]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def box_halved(pixels: np.ndarray) -> np.ndarray:
    """Mean of each 2 x 2 block."""
    height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    blocks = pixels[:height, :width].astype(np.float64).reshape(height // 2, 2, width // 2, 2, 3)
    return blocks.mean(axis=(1, 3))


def test_halves_with_box_then_ends_with_bicubic() -> None:
    image = noise(200, 96)
    halved = resize_short_side(image, 48)  # one halving, and bicubic to the same size changes nothing
    assert halved.size == (100, 48)
    assert np.abs(np.asarray(halved) - box_halved(np.asarray(image))).max() <= 1  # two roundings
    not_halved = resize_short_side(image, 49)  # 96 < 2 x 49: bicubic alone
    expected = image.resize((round(200 * 49 / 96), 49), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(not_halved), np.asarray(expected))


def test_two_halvings_for_a_large_image() -> None:
    image = noise(260, 200)
    twice = image.resize((130, 100), Image.Resampling.BOX).resize((65, 50), Image.Resampling.BOX)
    expected = twice.resize((round(65 * 40 / 50), 40), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(resize_short_side(image, 40)), np.asarray(expected))


def test_small_images_are_enlarged() -> None:
    assert resize_short_side(noise(10, 7), 32).size == (46, 32)


def test_values_span_minus_one_to_one() -> None:
    pixels = np.array([[[0, 255, 51]]], dtype=np.uint8)
    assert to_tensor(pixels).flatten().tolist() == pytest.approx([-1, 1, -0.6])


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 12), (16, 16), (33, 17), (70, 100), (200, 61), (64, 640)])
def test_a_file_is_read_as_in_evaluation(size: tuple[int, int], tmp_path: Path) -> None:
    noise(*size).save(tmp_path / "noise.png")
    expected = EvaluationTransform(16)(open_image(tmp_path / "noise.png"))
    assert torch.equal(read_image(tmp_path / "noise.png", 16), expected[None])


def test_an_image_is_read_as_its_centre_square_and_written_back(tmp_path: Path) -> None:
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:, 2:10, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    image = read_image(tmp_path / "wide.png", 8)
    assert image.shape == (1, 3, 8, 8) and torch.equal(image[0, 0], torch.ones(8, 8))
    write_image(image, tmp_path / "square.png")
    assert torch.equal(read_image(tmp_path / "square.png", 8), image)


def test_files_that_are_not_images_are_rejected_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png cannot be read as an image"):
        read_image(tmp_path / "text.png", 8)
    with pytest.raises(UserError, match="there is no image"):
        read_image(tmp_path / "missing.png", 8)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(1, 1, 8, 8),
        torch.zeros(8, 8),
        torch.zeros(3, 0, 8),
        torch.full((3, 4, 4), 100, dtype=torch.uint8),
        torch.full((1, 3, 4, 4), torch.nan),
    ],
    ids=lambda image: f"{image.dtype} {tuple(image.shape)}",
)
def test_only_one_finite_image_in_floating_point_is_written(image: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"got {image.dtype} {re.escape(str(tuple(image.shape)))}.*: select one, "):
        write_image(image, tmp_path / "image.png")
    assert not (tmp_path / "image.png").exists()


@pytest.mark.parametrize("name", ["image.jpg", "image", "image.png.webp"])
def test_only_png_files_are_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"write_image writes PNG files: .*{name} must end in .png"):
        write_image(torch.zeros(3, 8, 8), tmp_path / name)
    assert not (tmp_path / name).exists()
    write_image(torch.zeros(3, 8, 8), tmp_path / "image.PNG")


RED, HALF_RED = (255, 0, 0), (255, 127, 127)  # half transparent red over white


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (2, 2), 200), (200, 200, 200)),
        (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
        (Image.new("LA", (2, 2), (7, 255)), (7, 7, 7)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (*RED, 255)), RED),
        (Image.new("RGBA", (2, 2), (*RED, 128)), HALF_RED),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), RED),
        (Image.new("YCbCr", (2, 2), (255, 128, 128)), (255, 255, 255)),
        (Image.new("I;16", (2, 2), 65535), (255, 255, 255)),
        (Image.new("I;16", (2, 2), 32896), (128, 128, 128)),
        (Image.new("I", (2, 2), 32896), (128, 128, 128)),
        (Image.new("F", (2, 2), 0.2), (51, 51, 51)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert np.abs(np.asarray(rgb).astype(int) - expected).max() <= 1


def test_palettes_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert np.asarray(to_rgb(image)).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    image.info["transparency"] = 1
    assert np.asarray(to_rgb(image)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize(
    "image", [Image.new("I", (2, 2), 70000), Image.new("I", (2, 2), -1), Image.new("F", (2, 2), float("nan"))]
)
def test_values_outside_the_range_are_rejected(image: Image.Image) -> None:
    with pytest.raises(ValueError, match=f"mode {image.mode} "):
        to_rgb(image)


@pytest.mark.parametrize(
    ("image", "level"), [(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), 255), (Image.new("I;16", (4, 4), 32896), 128)]
)
def test_an_image_is_read_as_in_training(image: Image.Image, level: int, tmp_path: Path) -> None:
    image.save(tmp_path / "image.png")
    assert (to_uint8(read_image(tmp_path / "image.png", 4)) == level).all()


@pytest.mark.parametrize("size", [(1, MAX_ASPECT + 1), (20_000, 2), (2_000_000, 1)])
def test_thin_images_are_refused_by_their_header(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", size).save(tmp_path / "thin.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("its pixels were read"))
    with pytest.raises(UNREADABLE, match=f"{size[0]} × {size[1]} pixels: one side is more than 64 times the other"):
        open_image(tmp_path / "thin.png")
    with pytest.raises(UserError, match="thin.png cannot be read as an image"):
        read_image(tmp_path / "thin.png", 8)


def test_the_thinnest_image_is_read(tmp_path: Path) -> None:
    Image.new("L", (MAX_ASPECT, 1)).save(tmp_path / "thin.png")
    assert open_image(tmp_path / "thin.png").size == (MAX_ASPECT, 1)


@pytest.mark.parametrize(("shorter_side", "size"), [(7, (12, 8)), (8, (23, 15)), (16, (45, 30)), (31, (90, 60))])
def test_a_jpeg_is_decoded_at_a_reduced_size(shorter_side: int, size: tuple[int, int]) -> None:
    for mode, kind in (("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGB", "WEBP")):
        content = BytesIO()
        Image.new(mode, (90, 60)).save(content, kind)
        image = open_image(content.getvalue(), shorter_side)
        assert image.mode == mode and image.size == (size if kind == "JPEG" else (90, 60))


def test_a_header_that_claims_a_huge_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "huge.ppm").write_bytes(b"P5 20000 20000 255 ")
    with pytest.raises(UNREADABLE, match="exceeds limit"):
        open_image(tmp_path / "huge.ppm")


def test_what_is_not_finite_survives_resizing() -> None:
    images = torch.zeros(1, 3, 8, 8)
    images[0, 1, 3, 3] = float("nan")
    assert resize_displayed(images, 4).isnan().any()


@pytest.mark.parametrize("size", [12, 16, 24])
def test_images_are_resized_as_pillow_resizes_8_bits(size: int) -> None:
    """Pillow rounds, and clamps, between its two passes too: the images stay clear of black and white."""
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    for image, found in zip(to_uint8(images), to_uint8(resize_displayed(images, size)), strict=True):
        pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.asarray(pixels.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
        assert abs(expected - found.permute(1, 2, 0).numpy()).max() <= (0 if size == 16 else 1)
