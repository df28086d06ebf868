"""The four sources, on generated fixtures and on the images inside the dependencies; no network."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from datamodules import DigitsSource, FolderSource, HubSource, ImageDataModule, PhotosSource
from datamodules.sources.photos import PHOTOGRAPHS
from polytoken.errors import UserError
from tests.datamodules.memory import Diary, quiet_trainer
from tests.datamodules.test_resume import fit


def write(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8), (shade, shade, shade)).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes; the grey level of an image is ten times its index."""
    root = tmp_path / "imagenet"
    names = ["n01/b.JPEG", "n01/c.png", "n02/a.jpeg", "n02/d.PNG", "n02/e.jpg"]
    for shade, name in enumerate(names):
        write(root / "train" / name, shade * 10)
    write(root / "val" / "n01" / "v.JPEG", 50)
    write(root / "val" / "n02" / "w.JPEG", 60)
    (root / "train" / "n01" / "notes.txt").write_text("not an image")
    (root / "train" / "n01" / "._b.JPEG").write_text("what macOS leaves behind")
    return root


def test_folder_lists_in_sorted_order(tree: Path) -> None:
    source = FolderSource(str(tree))
    assert source.class_to_idx == {"n01": 0, "n02": 1}
    records = source.split("train")
    assert [records.label(index) for index in range(len(records))] == [0, 0, 1, 1, 1]
    assert [Path(records.describe(index)).name for index in range(5)] == ["b.JPEG", "c.png", "a.jpeg", "d.PNG", "e.jpg"]
    shades = [np.asarray(records.load(index)).mean() for index in range(5)]
    assert shades == pytest.approx([0, 10, 20, 30, 40], abs=2)
    validation = source.split("validation")
    assert [Path(validation.describe(index)).name for index in range(len(validation))] == ["v.JPEG", "w.JPEG"]


def test_folder_accepts_validation_for_val_and_a_class_without_validation_images(tree: Path) -> None:
    (tree / "val").rename(tree / "validation")
    (tree / "validation" / "n01" / "v.JPEG").unlink()
    (tree / "validation" / "n01").rmdir()
    records = FolderSource(str(tree)).split("validation")
    assert len(records) == 1 and records.label(0) == 1


def test_folder_errors_name_path_and_remedy(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere, the root of FolderSource, is not a folder"):
        FolderSource("nowhere").split("train")
    (tree / "train" / "n03").mkdir()
    with pytest.raises(FileNotFoundError, match="train/n03 holds no images"):
        FolderSource(str(tree)).split("train")
    (tree / "train" / "n03").rmdir()
    write(tree / "val" / "n04" / "x.jpg", 0)
    with pytest.raises(ValueError, match=r"val/n04 is a class that .*train lacks"):
        FolderSource(str(tree)).split("validation")
    (tree / "val").rename(tree / "elsewhere")
    with pytest.raises(FileNotFoundError, match="has no val/ or validation/"):
        FolderSource(str(tree)).split("validation")
    (tree / "empty" / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has no class folders"):
        FolderSource(str(tree / "empty")).split("train")


def test_truncated_file_is_skipped_and_counted(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = tree / "val" / "n01" / "v.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:300])
    (tree / "val" / "n02" / "empty.jpg").write_bytes(b"")
    (tree / "val" / "n02" / "text.jpg").write_text("<html>not found</html>")
    diary = Diary()
    datamodule = ImageDataModule(FolderSource(str(tree)), 8, num_workers=0, max_bad_fraction=0.8)
    quiet_trainer().validate(diary, datamodule=datamodule, verbose=False)
    assert [batch["index"].tolist() for batch in diary.evaluated] == [[3]]
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("datamodules")]
    for name, message in zip(("n01/v.JPEG", "n02/empty.jpg", "n02/text.jpg"), messages, strict=True):
        assert f"{tree}/val/{name} (" in message


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def hub_table(labels: list[int], shade: int, cut: bool = False):
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    images = [Image.new("RGB", (10, 8), (shade + index,) * 3) for index in range(len(labels))]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog", "eel"])})
    table = Dataset.from_dict({"image": images, "label": labels}, features=features)
    if cut:
        table = table.cast_column("image", ImageFeature(decode=False))
        table = table.map(lambda row: {"image": {"bytes": row["image"]["bytes"][:45], "path": "cut.png"}})
    return table


def assert_hub_splits(source: HubSource) -> None:
    assert source.class_to_idx == {"cat": 0, "dog": 1, "eel": 2}
    train, validation = source.split("train"), source.split("validation")
    assert [train.label(index) for index in range(len(train))] == [2, 0, 1]
    assert [validation.label(index) for index in range(len(validation))] == [1]
    assert np.asarray(train.load(2)).tolist() == np.full((8, 10, 3), 102).tolist()


@pytest.mark.usefixtures("hub_cache")
def test_hub_reads_save_to_disk(tmp_path: Path) -> None:
    from datasets import DatasetDict

    DatasetDict(train=hub_table([2, 0, 1], 100), validation=hub_table([1], 9)).save_to_disk(str(tmp_path / "saved"))
    assert_hub_splits(HubSource(str(tmp_path / "saved")))
    with pytest.raises(ValueError, match="no split 'val', only train, validation"):
        HubSource(str(tmp_path / "saved"), validation_split="val").split("validation")
    with pytest.raises(ValueError, match="no column 'img', only image, label: set image_column"):
        HubSource(str(tmp_path / "saved"), image_column="img").split("train")
    hub_table([0], 0).save_to_disk(str(tmp_path / "single"))
    with pytest.raises(ValueError, match="holds a single split"):
        HubSource(str(tmp_path / "single")).split("train")


@pytest.mark.usefixtures("hub_cache")
def test_hub_reads_parquet(tmp_path: Path) -> None:
    (tmp_path / "parquet").mkdir()
    hub_table([2, 0, 1], 100).to_parquet(str(tmp_path / "parquet" / "train-0.parquet"))
    hub_table([1], 9).to_parquet(str(tmp_path / "parquet" / "validation-0.parquet"))
    assert_hub_splits(HubSource(str(tmp_path / "parquet")))


@pytest.mark.usefixtures("hub_cache")
def test_a_run_on_parquet_files_resumes_at_the_next_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a local folder needs no network"))
    (tmp_path / "parquet").mkdir()
    for part in range(2):
        table = hub_table([0, 1, 2] * 4, 100 + 12 * part)
        table.to_parquet(str(tmp_path / "parquet" / f"train-{part:05d}-of-00002.parquet"))

    def data() -> ImageDataModule:
        source = HubSource(str(tmp_path / "parquet"), held_out=0.2)
        return ImageDataModule(source, 8, batch_size=4, num_workers=0, seed=3)

    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(data(), max_steps=8, enable_checkpointing=True, callbacks=[every])
    assert fit(data(), tmp_path / "step=3.ckpt", max_steps=8) == whole[3:]


@pytest.mark.usefixtures("hub_cache")
def test_hub_reads_an_image_folder(tmp_path: Path) -> None:
    for split, name in (("train", "cat"), ("train", "dog"), ("validation", "dog")):
        write(tmp_path / "tree" / split / name / "1.png", 30)
    source = HubSource(str(tmp_path / "tree"))
    assert source.class_to_idx == {"cat": 0, "dog": 1}
    assert len(source.split("train")) == 2 and source.split("validation").label(0) == 1
    assert source.split("validation").describe(0).endswith("1.png)")


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("train", "validation", "classes", "labels"),
    [([0, 2, 1], [2], {"0": 0, "1": 1, "2": 2}, [2]), (["b", "a", "b"], ["b"], {"a": 0, "b": 1}, [1])],
)
def test_hub_numbers_plain_labels(tmp_path: Path, train: list, validation: list, classes: dict, labels: list) -> None:
    from datasets import Dataset, DatasetDict

    png = tmp_path / "one.png"
    write(png, 5)
    tables = {
        name: Dataset.from_dict({"image": [png.read_bytes()] * len(values), "label": values})
        for name, values in (("train", train), ("validation", validation))
    }
    DatasetDict(tables).save_to_disk(str(tmp_path / "plain"))
    source = HubSource(str(tmp_path / "plain"))
    assert source.class_to_idx == classes
    records = source.split("validation")
    assert [records.label(index) for index in range(len(records))] == labels
    assert records.load(0).size == (10, 8)


@pytest.mark.usefixtures("hub_cache")
def test_hub_rejects_unlabelled_rows_and_wrong_paths(tmp_path: Path) -> None:
    from datasets import DatasetDict

    DatasetDict(train=hub_table([2, 0], 0), validation=hub_table([-1], 0)).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="label '-1', which the classes of 'train' lack"):
        HubSource(str(tmp_path / "saved")).split("validation")
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        HubSource(str(tmp_path / "missing")).split("train")


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("labels", "held"),
    [
        (["cat", None], "NoneType, str"),
        ([None, None], "NoneType"),
        ([1, None], "float32"),
        ([[0, 1], [1, 2]], "ndarray"),
        ([["cat"], ["cat", "dog"]], "ndarray"),
    ],
)
def test_hub_rejects_columns_that_are_no_labels(tmp_path: Path, labels: list, held: str) -> None:
    from datasets import Dataset, DatasetDict

    wrong = Dataset.from_dict({"image": [b"", b""], "label": labels})
    DatasetDict(train=wrong, validation=wrong).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(
        UserError, match=f"Column 'label' of .*saved holds {held}: .* strings, none of them missing; set"
    ):
        HubSource(str(tmp_path / "saved")).split("train")


@pytest.mark.usefixtures("hub_cache")
def test_hub_lists_damaged_images_and_loading_them_fails(tmp_path: Path) -> None:
    from datasets import DatasetDict

    tables = DatasetDict(train=hub_table([2, 0], 0), validation=hub_table([1], 0, cut=True))
    tables.save_to_disk(str(tmp_path / "saved"))
    records = HubSource(str(tmp_path / "saved")).split("validation")
    with pytest.raises(OSError):
        records.load(0)
    assert "[validation] row 0 (cut.png)" in records.describe(0)


def test_digits_split_is_fixed_and_balanced() -> None:
    source = DigitsSource()
    train, validation = source.split("train"), source.split("validation")
    assert (len(train), len(validation)) == (1442, 355)
    assert not set(train.rows.tolist()) & set(validation.rows.tolist())
    for records, least, most in ((train, 140, 147), (validation, 34, 36)):
        counts = Counter(records.labels.tolist())
        assert sorted(counts) == list(range(10)) and min(counts.values()) == least and max(counts.values()) == most


def test_digits_are_upsampled_rgb() -> None:
    records = DigitsSource(size=16).split("train")
    image = records.load(0)
    assert image.mode == "RGB" and image.size == (16, 16)
    assert records.pixels.max() == 255 and records.pixels.min() == 0
    with pytest.raises(ValueError, match="at least 8"):
        DigitsSource(size=4)


def test_photos_keep_validation_pixels_out_of_training() -> None:
    source = PhotosSource(train_crops_per_photo=64)
    train, validation = source.split("train"), source.split("validation")
    assert len(train) == 64 * 14 and len(validation) == 16 * 14
    for number, pixels in enumerate(train.pixels):
        shown = [np.zeros(pixels.shape[:2], dtype=bool) for _ in range(2)]
        for mask, records in zip(shown, (train, validation), strict=True):
            for _, top, left in records.windows[records.windows[:, 0] == number]:
                assert pixels[top : top + 96, left : left + 96].shape == (96, 96, 3)
                mask[top : top + 96, left : left + 96] = True
        assert shown[0].any() and shown[1].any() and not (shown[0] & shown[1]).any(), PHOTOGRAPHS[number].name
    assert Counter(train.windows[:, 0].tolist()) == {number: 64 for number in range(14)}


def test_photos_windows_are_a_function_of_the_seed() -> None:
    first, again, other = (PhotosSource(seed=seed).split("train") for seed in (0, 0, 1))
    assert np.array_equal(first.windows, again.windows) and not np.array_equal(first.windows, other.windows)
    assert first.load(300).size == (96, 96) and first.label(300) == 1
    assert first.describe(300).startswith("data/brick.png, window at row ")


def test_photos_reject_a_window_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"coins.*192 or less|chelsea.*225 or less"):
        PhotosSource(window=230).split("train")


@pytest.mark.usefixtures("hub_cache")
def test_hub_rejects_labels_that_number_no_classes(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    table = Dataset.from_dict({"image": [b"", b""], "label": [0, 1_000_000_000]})
    DatasetDict(train=table, validation=table).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="holds the label 1000000000: classes are numbered from 0"):
        HubSource(str(tmp_path / "saved")).split("train")
