"""Reading data: images and tokens a second of one worker, and how far `draft` changes pixels.

    python -m benchmarks.data [--rounds 15]

Images are the photographs of `PhotosSource` as JPEGs of quality 95: 500 × 375 px, the most frequent size of ImageNet,
and 2,000 × 1,500 px, sixteen of them side by side. Rates are of CPU time of one process that reads from the page cache:
of a worker with a core of its own and a fast disk. `one_worker` is that of a real worker, which passes its batches on.
Bounds, measured in turns, are Pillow alone for images, one gather of numpy from a mapped array for tokens, and tarfile
alone for headers.
"""

from __future__ import annotations

import argparse
import io
import math
import resource
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from artifacts.moments import Moments
from artifacts.token_manifest import StorePlan
from artifacts.token_store_writer import TokenStoreWriter
from benchmarks.machine import Result, write_results
from datamodules import FolderSource, ImageDataModule, TokenDataModule
from datamodules.dataset import ImageDataset, collate
from datamodules.sources.photos import PHOTOGRAPHS, Photograph
from datamodules.sources.tar_index import scan
from datamodules.sources.webdataset import TarRecords
from datamodules.transforms import TrainingTransform
from polytoken.images import open_image
from polytoken.specs import TokenSpec

SMALL = (500, 375)  # width and height
TILES = 4  # photographs along a side of a large image
LARGE = (TILES * SMALL[0], TILES * SMALL[1])
EVEN = (512, 384)  # of sides that `draft` and the transform halve alike
CASES = ((SMALL, 256), (SMALL, 128), (EVEN, 128), (LARGE, 256))  # size of the files, pixels a side of the crops
VIEWS = 10
SEEDS = 4  # crops of an image that are compared
COPIES = 16  # files of each image
EPOCHS = 3  # of one worker


def photographs(size: tuple[int, int]) -> Iterator[Image.Image]:
    """Photographs of the size (width, height): the middle of each, or `TILES` × `TILES` of them."""
    if size == LARGE:
        tiles = list(photographs(SMALL))
        for first in range(0, len(tiles), TILES):
            large = Image.new("RGB", LARGE)
            for place in range(TILES * TILES):
                row, column = divmod(place, TILES)
                large.paste(tiles[(first + place) % len(tiles)], (column * SMALL[0], row * SMALL[1]))
            yield large
        return
    for photo in PHOTOGRAPHS:
        image = Image.fromarray(Photograph(photo.package, photo.file).read())
        scale = max(1, size[0] / image.width, size[1] / image.height)
        image = image.resize((math.ceil(image.width * scale), math.ceil(image.height * scale)))
        left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
        yield image.crop((left, top, left + size[0], top + size[1]))


def write_images(root: Path, size: tuple[int, int]) -> list[bytes]:
    """Write the images as a folder, and as a tar shard; returns the JPEGs."""
    (root / "train").mkdir(parents=True)
    encoded = []
    for image in photographs(size):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=95)
        encoded.append(file.getvalue())
    for number, content in enumerate(encoded * COPIES):
        (root / f"train/{number:04d}.jpg").write_bytes(content)
    write_shard(root / "train.tar", encoded)
    return encoded


def write_shard(path: Path, encoded: list[bytes]) -> None:
    """Write images and the class 0 of each."""
    with tarfile.open(path, "w") as shard:
        for number, content in enumerate(encoded):
            for ending, data in (("jpg", content), ("cls", b"0")):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))


def seconds_in_turns(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of one call of each function, called one after the other in each round."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for name in [*functions] * (rounds + 1):
        start = time.process_time()
        functions[name]()
        times[name].append(time.process_time() - start)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def one_worker(loader: DataLoader[Any], name: str) -> float:
    """Values of a tensor of the batches in a CPU second of the only worker, passing them on included."""
    before = _seconds_of_ended_processes()
    values = sum(batch[name].numel() for _ in range(EPOCHS) for batch in loader)
    del loader  # ends the worker
    return values / (_seconds_of_ended_processes() - before)


def _seconds_of_ended_processes() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure_images(size: tuple[int, int], image_size: int, rounds: int) -> list[Result]:
    """Decoding, transform and both, with and without `draft`, from files and from a tar shard."""
    with tempfile.TemporaryDirectory() as folder:
        encoded = write_images(Path(folder), size)

        def module(draft: bool = False, workers: int = 0) -> ImageDataModule:
            source = FolderSource(folder)
            return ImageDataModule(source, image_size, batch_size=len(encoded), num_workers=workers, draft=draft)

        whole, reduced = module().dataset("train"), module(draft=True).dataset("train")
        transform = TrainingTransform(image_size)
        shard = Path(folder, "train.tar")
        tar = ImageDataset(TarRecords(shard.parent, [shard.name], [scan(shard)]), transform, "train", 0, False)
        decoded = [open_image(content) for content in encoded]
        rows = range(len(encoded))
        times = seconds_in_turns(
            {
                "pillow": lambda: [Image.open(io.BytesIO(content)).load() for content in encoded],
                "decode": lambda: [whole.records.load(row) for row in rows],
                "transform": lambda: [transform(image, np.random.default_rng(0)) for image in decoded],
                "both": lambda: collate([whole[0, row] for row in rows]),
                "both_tar": lambda: collate([tar[0, row] for row in rows]),
                "decode_draft": lambda: [reduced.records.load_reduced(row, transform.largest_side) for row in rows],
                "both_draft": lambda: collate([reduced[0, row] for row in rows]),
            },
            rounds,
        )
        worker = one_worker(module(workers=1).train_dataloader(), "image") / (3 * image_size**2)
    place = f"images/{size[0]}x{size[1]}/{image_size}px"
    bound = len(encoded) / times.pop("pillow")
    results = [
        Result(f"{place}/{name}", rate := len(encoded) / spent, "images/s", bound, rate / bound)
        for name, spent in times.items()
    ]
    share = times["decode"] / (times["decode"] + times["transform"])
    return [
        *results,
        Result(f"{place}/one_worker", worker, "images/s", bound, worker / bound),
        Result(f"{place}/share_of_decoding", share, "of both"),
        Result(f"{place}/draft_over_whole", times["both"] / times["both_draft"], "times"),
        *draft_difference(place, encoded, transform),
    ]


def draft_difference(place: str, encoded: list[bytes], transform: TrainingTransform) -> list[Result]:
    """Mean absolute difference in grey levels, and PSNR in dB, of the crops with and without `draft`."""
    absolute, squared = [], []
    for content in encoded:
        images = open_image(content), open_image(content, transform.largest_side)
        for seed in range(SEEDS):
            whole, reduced = (transform(image, np.random.default_rng(seed)) for image in images)
            levels = (whole - reduced).double() * 127.5
            absolute.append(levels.abs().mean().item())
            squared.append(levels.square().mean().item())
    mean = statistics.mean(squared)
    psnr = [Result(f"{place}/draft_psnr", 10 * math.log10(255**2 / mean), "dB")] if mean else []
    return [Result(f"{place}/draft_difference", statistics.mean(absolute), "levels"), *psnr]


def measure_tokens(name: str, spec: TokenSpec | None, images: int, batch_size: int, rounds: int) -> list[Result]:
    """Tokens of `TokenDataModule`, or values of latents (16, 16, 16), against one gather from a mapped array."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for split, count, views in (("train", images, VIEWS), ("validation", 1, 1)):
            write_store(Path(folder, split), spec, count, views, generator)
        data = TokenDataModule(folder, batch_size=batch_size, num_workers=0)
        dataset = data.dataset("train")
        shape, stored = dataset.store.plan.shape, dataset.store.plan.dtype
        np.save(f"{folder}/plain.npy", generator.integers(0, 9, (images, VIEWS, *shape)).astype(stored))
        mapped = np.load(f"{folder}/plain.npy", mmap_mode="r")
        order = generator.permutation(images)[:batch_size]
        drawn = generator.integers(0, VIEWS, batch_size)
        kind = np.int64 if spec else np.float32
        times = seconds_in_turns(
            {
                "numpy": lambda: torch.from_numpy(mapped[order, drawn].astype(kind)),
                "read": lambda: dataset.collate([dataset[0, int(row)] for row in order]),
            },
            rounds,
        )
        values = batch_size * math.prod(shape)
        with_worker = TokenDataModule(folder, batch_size=batch_size, num_workers=1)
        worker = one_worker(with_worker.train_dataloader(), dataset.store.plan.holds)
    bound, rate = values / times["numpy"], values / times["read"]
    return [
        Result(f"tokens/{name}/read", rate, "1/s", bound, rate / bound),
        Result(f"tokens/{name}/one_worker", worker, "1/s", bound, worker / bound),
        Result(f"tokens/{name}/images", rate / math.prod(shape), "images/s"),
    ]


def write_store(path: Path, spec: TokenSpec | None, images: int, views: int, generator: np.random.Generator) -> None:
    """A store of random codes on a grid of 16 × 16, or of latents."""
    plan = StorePlan(
        spec=spec,
        latent_shape=(16, 16, 16),
        tokenizer_fingerprint="0" * 64,
        tokenizer_run="none",
        split=path.name,
        num_images=images,
        class_to_idx={"all": 0},
        image_size=256,
        views=tuple(map(str, range(views))),
        images_per_shard=images,
    )
    writer = TokenStoreWriter(path, plan)
    writer.begin()
    shape = (images, views, *plan.shape)
    codes = generator.integers(0, spec.codebook_sizes[0], shape) if spec else None
    tokens = generator.normal(size=shape).astype(np.float32) if codes is None else codes
    moments = Moments.of(generator.normal(size=(2, 1, *plan.latent_shape)).astype(np.float32))
    writer.write(0, np.arange(images), np.zeros(images, np.int64), tokens, moments)
    writer.finish()


def measure_headers(samples: int, rounds: int) -> list[Result]:
    """Headers a second of the index of a shard, against tarfile alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.tar")
        write_shard(path, [b"no image"] * samples)

        def read() -> None:
            with tarfile.open(path, "r:") as shard:
                while shard.next() is not None:
                    shard.members.clear()

        times = seconds_in_turns({"tarfile": read, "index": lambda: scan(path)}, rounds)
    bound, rate = 2 * samples / times["tarfile"], 2 * samples / times["index"]
    return [Result("tar/index", rate, "headers/s", bound, rate / bound)]


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each kind; the median counts")
    given = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker
    results = [result for case in CASES for result in measure_images(*case, given.rounds)]
    one_code, two_codes = (TokenSpec((16_384,) * codebooks, ((16, 16),)) for codebooks in (1, 2))
    for name, spec, images in (("256x1", one_code, 8192), ("256x2", two_codes, 8192), ("latents", None, 1024)):
        results += measure_tokens(name, spec, images, 256, given.rounds)
    results += measure_headers(5000, given.rounds)
    print(f"written to {write_results('data', results)}")


if __name__ == "__main__":
    main()
