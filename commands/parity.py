"""Agreement of a released tokenizer with its authors: `python -m commands.parity llamagen/vq_ds16_c2i`.

The authors' code is not here, so files hold what it computes: run it on the `images.npz` that this program writes, and
name its codes and reconstructions. The exit code is 1 if a check fails. See docs/model_zoo.md.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from artifacts import npz
from callbacks.measure.plots import image_table
from commands.comparison import Comparison
from commands.preset import Preset, spread
from commands.program import best_device, new_parser, run, whole_number
from commands.progress import track
from datamodules.sources.listing import list_images
from polytoken.errors import UserError
from polytoken.images import from_uint8, read_image, save_png, to_uint8
from polytoken.metrics.extractors import load_extractor
from polytoken.metrics.image_metrics import image_metrics
from polytoken.metrics.images import psnr, psnr_unclamped
from polytoken.precision import full_precision
from polytoken.pretrained.released import find, load_released
from polytoken.tokenizers import Tokenizer

DECODER_PSNR = 60.0  # dB between two decoders of equal weights in float32
RFID_TOLERANCE = 0.02
VERDICTS = {True: "holds", False: "fails", None: "not checked"}


class Check(NamedTuple):
    """Result of a check."""

    name: str
    held: bool | None  # None if it did not take place
    about: str  # figures, or what is missing


@torch.inference_mode()
def compare(given: Namespace, tokenizer: Tokenizer) -> list[Check]:
    """Run all checks; writes ``images.npz`` and ``reconstructions.png``.

    Raises:
        MissingFileError: a file or folder does not exist.
        UserError: it is damaged, or its sizes are not those of the tokenizer.
    """
    images = torch.cat([*_images(given, tokenizer.image_size, given.images)])
    given.to.mkdir(parents=True, exist_ok=True)
    npz.write(given.to / "images.npz", {}, [images.permute(0, 2, 3, 1).numpy()], (len(images), *images.shape[2:], 3))
    with full_precision(tokenizer.last_layer.device):
        reconstruction, codes = _reconstruct(tokenizer, images)
        picture = image_table([[*images], [*to_uint8(reconstruction)]], ("original", "reconstruction"))
        save_png(given.to / "reconstructions.png", picture)
        theirs = None if given.reference_codes is None else _codes(given.reference_codes, tokenizer, codes)
        decoded = reconstruction
        if theirs is not None:  # a code that differs is no fault of the decoder
            decoded = tokenizer.decode_codes(theirs.to(tokenizer.last_layer.device)).cpu()
        return [
            _check_images(images, reconstruction, codes, tokenizer),
            _check_codes(codes, theirs),
            _check_decoder(given.reference_images, decoded),
            _check_rfid(given, tokenizer),
        ]


def _check_images(images: Tensor, reconstruction: Tensor, codes: Tensor | None, tokenizer: Tokenizer) -> Check:
    """Reconstructions are nearer to the images than grey ones: range and channels are understood."""
    found, grey = psnr(to_uint8(reconstruction), images), psnr(torch.full_like(images, 128), images)
    about = f"PSNR {', '.join(f'{value:.1f}' for value in found)} dB, mean {found.mean():.2f}; grey {grey.mean():.2f}"
    if codes is not None:
        sizes = tokenizer.quantizer.codebook_sizes
        seen = (f"{len(codes[:, i].unique())} of {size}" for i, size in enumerate(sizes))
        about += f"; codes in use: {', '.join(seen)}"
    finite = bool(reconstruction.isfinite().all())  # in 8 bits NaN would pass for black
    return Check("reconstruction", finite and bool(found.mean() > grey.mean()), about)


def _check_codes(codes: Tensor | None, theirs: Tensor | None) -> Check:
    if codes is None or theirs is None:
        about = "the tokenizer has none" if codes is None else "name the authors' codes as --reference-codes"
        return Check("codes", None, about)
    equal = (codes == theirs).double().mean().item()
    return Check("codes", equal == 1, f"{equal:.4%} are equal")


def _check_decoder(path: Path | None, reconstruction: Tensor) -> Check:
    if path is None:
        return Check("decoder", None, "name the authors' reconstructions as --reference-images")
    theirs = _array(path)
    if theirs.ndim == 4 and theirs.shape[-1] == 3:
        theirs = theirs.permute(0, 3, 1, 2)
    if theirs.shape != reconstruction.shape:
        raise UserError(f"{path} holds images of {(*theirs.shape,)}, and ours are {(*reconstruction.shape,)}")
    if theirs.dtype == torch.uint8:
        found = psnr(to_uint8(reconstruction), theirs)
    elif theirs.is_floating_point():
        found = psnr_unclamped(reconstruction.clamp(-1, 1), theirs.clamp(-1, 1))
    else:
        raise UserError(f"{path} holds {theirs.dtype}: images are uint8, or floats in [-1, 1]")
    return Check("decoder", bool(found.min() > DECODER_PSNR), f"PSNR of both at least {found.min():.1f} dB")


def _check_rfid(given: Namespace, tokenizer: Tokenizer) -> Check:
    published = re.search(r"rFID (\d+\.\d+)", find(given.name).published)
    if published is None or given.rfid is None:
        about = "the authors published none" if published is None else "name a file of `make reference` as --rfid"
        return Check("rFID", None, about)
    comparison = Comparison(load_extractor("inception", None, best_device()), None, given.rfid, "reconstruction")
    target = comparison.target((tokenizer.image_size, tokenizer.image_size))
    batches = track(_images(given, tokenizer.image_size), "reconstructions, batches")
    found = comparison.measure(((_reconstruct(tokenizer, batch)[0], None) for batch in batches), keep_rows=False)
    value, number = image_metrics(found, target, "r")["rfid/inception"]["value"], target.about["reference_n"]
    about = f"{value:.2f} over {found.count} images; published {published[1]}"
    if found.count != number:
        return Check("rFID", None, f"{about}, and the reference is of {number} images")
    return Check("rFID", abs(value - float(published[1])) <= RFID_TOLERANCE, about)


def _images(given: Namespace, size: int, at_most: int | None = None) -> Iterator[Tensor]:
    """Images uint8 (B, 3, size, size) of the preset's validation split or of a folder, evenly spread."""
    if given.data is None or any((given.data / name).is_dir() for name in ("val", "validation")):
        preset = Preset.load(given.preset, None if given.data is None else str(given.data))
        if preset.data.image_size != size:
            raise UserError(f"{given.name} reads {size} pixels, and {preset.name} has {preset.data.image_size}")
        yield from (to_uint8(images) for images, _ in preset.images("validation", at_most))
        return
    names = list_images(given.data).images
    rows = spread(len(names), at_most) or range(len(names))
    yield from (to_uint8(read_image(given.data / names[row], size)) for row in rows)


def _reconstruct(tokenizer: Tokenizer, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Reconstructions (B, 3, H, W) and codes (B, k, N), if it has some, on the CPU."""
    decoded, encoding = tokenizer(from_uint8(images).to(tokenizer.last_layer.device))
    return decoded.image.float().cpu(), encoding.codes.cpu() if tokenizer.spec is not None else None


def _codes(path: Path, tokenizer: Tokenizer, ours: Tensor | None) -> Tensor:
    if ours is None:
        raise UserError("the tokenizer has no codes: leave out --reference-codes")
    theirs = _array(path)
    if theirs.is_floating_point() or theirs.numel() != ours.numel():
        raise UserError(f"{path} holds {theirs.dtype} {(*theirs.shape,)}, and our codes are integers {(*ours.shape,)}")
    theirs = theirs.long().view(ours.shape)
    try:
        tokenizer.check_codes(theirs, tokenizer.grid)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return theirs


def _array(path: Path) -> Tensor:
    with npz.reading(path, "cannot be read", "Expected an array arr_0, as numpy.savez(path, array) writes it.") as file:
        array = npz.read_array(file, "arr_0")
        return torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" and array.itemsize > 1 else array)


def work(given: Namespace) -> int:
    """Compare, and print a line for each check; 1 if one fails."""
    if (own := find(given.name).tokenizer) is not None:
        raise UserError(f"{given.name} is a generator: compare its tokenizer {own}, and evaluate samples")
    tokenizer = load_released(given.name, given.file, accept_license=given.accept_license)
    assert isinstance(tokenizer, Tokenizer)
    given.to = given.to or Path("runs/parity", given.name)
    checks = compare(given, tokenizer.to(best_device()))
    for check in checks:
        print(f"{check.name:<16}{VERDICTS[check.held]:<13}{check.about}")
    print(f"images and reconstructions are in {given.to}")
    return int(any(check.held is False for check in checks))


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.parity", __doc__)
    parser.add_argument("name", help="tokenizer, as docs/model_zoo.md lists it")
    parser.add_argument("--file", type=Path, help="the released file; by default it is downloaded from the hub")
    parser.add_argument("--accept-license", action="store_true", help="agree to a licence without commercial use")
    parser.add_argument("--preset", default="imagenet", help="preset whose validation images are read")
    parser.add_argument("--data", type=Path, help="folder of the preset's images, or of any images")
    parser.add_argument(
        "--images", type=whole_number(1), default=8, help="images to reconstruct and compare (default: 8)"
    )
    parser.add_argument("--reference-codes", type=Path, help="npz of integers arr_0: the authors' codes")
    parser.add_argument("--reference-images", type=Path, help="npz of arr_0: the authors' reconstructions")
    parser.add_argument("--rfid", type=Path, help="npz of `make reference`: compare rFID of all images as published")
    parser.add_argument("--to", type=Path, help="folder of images and picture (default: runs/parity/NAME)")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
