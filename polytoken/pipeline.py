"""Images of given classes, by a trained generator and its tokenizer."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from polytoken.codec import embed_sub_codes
from polytoken.errors import UserError
from polytoken.files import real_path
from polytoken.generators.base import Generator
from polytoken.generators.decoding import Compile
from polytoken.generators.next_scale import NextScaleGenerator
from polytoken.generators.record import GeneratorRecord
from polytoken.images import to_uint8
from polytoken.loading import Checkpoint, load_tokenizer_of, present_run
from polytoken.precision import full_precision
from polytoken.sampling import CategoricalSampler, FlowSampler, ForcedCodes, Forcing, Guidance, RowNoise
from polytoken.specs import Tokens
from polytoken.tokenizers import Tokenizer


class GenerationPipeline(nn.Module):
    """Generates images of given classes; :meth:`from_run` loads it, ``.to("cuda")`` moves it.

    Args:
        network: generates codes or latents.
        tokenizer: decodes them.
        sub_codes: the tokenizer's sub-codes that the network generates, in its order; not read for one of latents.
        class_to_idx: class names and their labels.
        origin: runs and digests of both, as plain data.
    """

    def __init__(
        self,
        network: Generator,
        tokenizer: Tokenizer,
        sub_codes: Sequence[int],
        class_to_idx: dict[str, int],
        origin: dict[str, Any],
    ) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.sub_codes = list(sub_codes)
        self.class_to_idx = class_to_idx
        self.origin = origin

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        tokenizer_run: str | Path | None = None,
        trust: Sequence[str] = (),
        compile: Compile = False,  # noqa: A002
    ) -> GenerationPipeline:
        """Load the generator of a run and its tokenizer: frozen, on the CPU.

        Warns if the run is a first stage, whose samples are not those of the finished model.

        Args:
            run: the run's directory, e.g. ``runs/digits/stage2/fq_dual``, or a checkpoint file.
            tokenizer_run: present place of its tokenizer; None looks where it was in training, and beside the run.
            trust: packages besides polytoken whose classes the checkpoints may name.
            compile: sample by graphs of ``torch.compile``, which needs a C++ compiler, and a minute or two at the first
                call; ``auto`` does so on a GPU.

        Raises:
            MissingFileError: if one of the two does not exist.
            UserError: if the run is not a generator's, or was trained on the tokens of another tokenizer.
        """
        checkpoint = Checkpoint.open(run)
        record = checkpoint.record
        _warn_of_first_stage(record, checkpoint.path)
        place = Path(tokenizer_run or present_run(record.tokenizer_run, checkpoint.path))
        tokenizer = load_tokenizer_of(record, f"{checkpoint.path} writes", place, trust)
        pipeline = cls.of(checkpoint, tokenizer, str(run), str(place), trust)
        if compile is True and pipeline.network.models != "codes":
            raise UserError(f"{type(pipeline.network).__name__} samples without torch.compile: leave `compile` out")
        pipeline.network.compile_decoding = compile
        return pipeline

    @classmethod
    @torch.random.fork_rng(devices=[])
    def of(
        cls,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        run: str,
        tokenizer_run: str,
        trust: Sequence[str] = (),
        sha256: str | None = None,
        averaged: bool | None = None,
    ) -> GenerationPipeline:
        """Assemble the pipeline of a generator's checkpoint, in eval mode.

        Args:
            checkpoint: of the generator.
            tokenizer: that of its tokens, which the caller has checked.
            run: what ``origin`` calls the generator.
            tokenizer_run: likewise the tokenizer.
            trust: packages besides polytoken whose classes the checkpoint may name.
            sha256: digest of the generator's weights; None is that of the checkpoint's file.
            averaged: True if its weights are averages; None is what the checkpoint says.
        """
        record = checkpoint.record
        origin = {
            "generator": {
                "run": run,
                "sha256": sha256 or checkpoint.sha256,
                "step": checkpoint.step,
                "averaged": checkpoint.averaged if averaged is None else averaged,
            },
            "tokenizer": {"run": tokenizer_run, "fingerprint": record.tokenizer_fingerprint},
        }
        network = checkpoint.generator(trust, tokenizer)
        return cls(network, tokenizer, record.sub_codes, record.class_to_idx, origin).eval()

    @property
    def num_classes(self) -> int:
        """The classes it was trained on."""
        return self.network.num_classes

    @property
    def class_names(self) -> list[str]:
        """The name of each class."""
        names = {index: name for name, index in self.class_to_idx.items()}
        return [names.get(index, str(index)) for index in range(self.num_classes)]

    def rules(self, sampler: Guidance) -> Guidance:
        """The settings of any sampler as the rules of this network.

        Raises:
            UserError: if they are those of another family, do not fit the network, or snap latents of a tokenizer
                without codes.
        """
        own = sampler.of(self.network.sampler_type)
        self.network.check_sampler(own)
        if snaps(own):
            self.tokenizer.snap(torch.zeros(1, *self.tokenizer.latent_shape, device=self._device))
        return own

    def round_weights(self, dtype: torch.dtype) -> None:
        """Round those weights that autocast to ``dtype`` rounds at every call: the images under autocast are the same.

        Autocast keeps no copies of frozen weights, and reading and rounding float32 takes three times as long as
        reading bfloat16. Afterwards the network runs under autocast only.
        """
        for layer in self.network.autocast_layers():
            layer.to(dtype)

    @torch.inference_mode()
    def images(
        self,
        labels: Tensor,
        sampler: Guidance,
        seed: int = 0,
        first_index: int = 0,
        forced: ForcedCodes | None = None,
    ) -> Tensor:
        """Draw uint8 images (B, H, W, 3) of classes (B,); tokens are always decoded in float32.

        Row i depends on its class, the sampler, the seed, first_index + i and its forced codes; not on the other rows.

        Raises:
            UserError: if a class is none of the generator's, or the rules are those of another family.
        """
        rules = self.rules(sampler)
        return self.decode(self.draw(labels, rules, seed, first_index, forced), snaps(rules))

    @torch.no_grad()
    def draw(
        self,
        labels: Tensor,
        rules: Guidance,
        seed: int = 0,
        first_index: int = 0,
        forced: ForcedCodes | None = None,
    ) -> Tokens:
        """Draw tokens of classes (B,), by the rules of the network's family; see :meth:`images`."""
        noise = RowNoise(seed, first_index, len(labels), labels.device)
        if forced is None:
            return self.network.sample(labels, rules, noise)
        assert isinstance(self.network, NextScaleGenerator)  # checked by forced_places
        return self.network.sample(labels, cast(CategoricalSampler, rules), noise, forced)

    def forced_places(self, forcing: Forcing) -> tuple[int, ...]:
        """Return the places of the forced sub-codes among those that the network writes.

        Raises:
            UserError: if it does not write them or no others, or cannot be forced.
        """
        if not isinstance(self.network, NextScaleGenerator):
            raise UserError(
                f"{type(self.network).__name__} cannot be forced to write the sub-codes of a reference image: take a "
                "run of NextScaleGenerator (configs/next_scale.yaml)"
            )
        self.network.check_forced()
        return forcing.within(self.sub_codes)

    def check_references(self, references: Tensor) -> None:
        """Raise UserError unless reference images (B, 3, H, W) have the size that the tokenizer was trained on."""
        side = self.tokenizer.image_size
        if references.shape[1:] != (3, side, side):
            shape = " × ".join(map(str, references.shape[1:]))
            raise UserError(
                f"the reference images are {shape} and the tokenizer reads 3 × {side} × {side}: resize them "
                "(data.image_size)"
            )

    @torch.no_grad()
    def force(self, references: Tensor, forcing: Forcing) -> ForcedCodes:
        """Encode reference images (B, 3, H, W) in [-1, 1], whose sub-codes :meth:`images` then writes.

        Raises:
            UserError: if the images have another size than the tokenizer's, or the network cannot be forced.
        """
        places = self.forced_places(forcing)
        self.check_references(references)
        with full_precision(self._device):
            codes = self.tokenizer.encode(references.to(self._device, torch.float32)).codes
        assert codes is not None  # of a generator of codes
        return ForcedCodes(torch.stack([codes[:, i] for i in self.sub_codes], dim=1), places, forcing.guidance)

    def forced_alone(self, forced: ForcedCodes) -> Tensor:
        """Decode the forced sub-codes to uint8 images (B, H, W, 3), with the other subspaces set to zero."""
        codes = torch.stack([forced.codes[:, i] for i in forced.sub_codes], dim=1)
        return self.decode(Tokens(codes=codes), sub_codes=[self.sub_codes[i] for i in forced.sub_codes])

    @torch.inference_mode()
    def decode(self, tokens: Tokens, snap: bool = False, sub_codes: Sequence[int] | None = None) -> Tensor:
        """Decode tokens to uint8 images (B, H, W, 3), in float32; subspaces that are not given are zero.

        Args:
            tokens: as the network writes them.
            snap: move latents to the quantizer's points.
            sub_codes: the tokenizer's sub-codes that the codes are; None is those that the network writes.
        """
        return finite_images(self.decode_unchecked(tokens, snap, sub_codes))

    @torch.inference_mode()
    def decode_unchecked(
        self, tokens: Tokens, snap: bool = False, sub_codes: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode without waiting for the device: images as :meth:`decode`, and (), bool, whether they are finite."""
        with full_precision(self._device):  # bfloat16 has steps of half a grey level and more
            images = self._decode(tokens, snap, self.sub_codes if sub_codes is None else sub_codes)
        return to_uint8(images).permute(0, 2, 3, 1).contiguous(), images.isfinite().all()

    def sample(
        self,
        classes: Sequence[int | str],
        guidance: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 32,
        sampler: Guidance | None = None,
        references: Tensor | None = None,
        forcing: Forcing | None = None,
    ) -> list[Image.Image]:
        """Draw one image of each class.

        Args:
            classes: numbers or names, one an image.
            guidance: classifier-free guidance; 1 is none.
            temperature: divides the logits.
            top_k: most likely codes that are drawn from; None is all.
            top_p: share of the probability that is drawn from.
            seed: of image i together with i, so a longer list begins with the same images.
            batch_size: images at a time, a matter of memory only.
            sampler: all rules at once, where ``guidance`` to ``top_p`` are left out: a FlowSampler for a generator of
                latents.
            references: (B, 3, H, W) in [-1, 1], one an image, some of whose sub-codes are written by force
                (ImageFolder section 4); :func:`polytoken.images.read_image` reads one.
            forcing: which sub-codes, and how strongly they guide the others; None is ``Forcing()``.

        Raises:
            UserError: if there is no such class, a setting is out of its range, rules are given twice, or the
                references do not fit.
        """
        if isinstance(classes, str) or not isinstance(classes, Iterable):
            raise UserError(f"classes is {classes!r}: give a list, [{classes!r}]")
        if references is None and forcing is not None:
            raise UserError("forcing needs the images whose sub-codes are forced: give references")
        if references is not None and len(references) != len(classes):
            raise UserError(f"{len(references)} reference images for {len(classes)} classes: give one an image")
        if references is not None and not bool((references.abs() <= 1).all()):  # NaN is not either
            raise UserError("reference images leave [-1, 1]: polytoken.images.read_image reads a file in this range")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: it must be at least 1")
        rules = CategoricalSampler(guidance=guidance, temperature=temperature, top_k=top_k, top_p=top_p)
        if sampler is not None and rules != CategoricalSampler():
            raise UserError(
                "sampler holds all rules, and guidance, temperature, top_k or top_p is given as well: set them in the "
                "sampler, or leave it out"
            )
        labels = torch.tensor([self._index(name) for name in classes], dtype=torch.int64, device=self._device)
        images = []
        for start in range(0, len(labels), batch_size):
            batch = slice(start, start + batch_size)
            forced = references if references is None else self.force(references[batch], forcing or Forcing())
            drawn = self.images(labels[batch], sampler or rules, seed, start, forced).cpu()
            images += [Image.fromarray(image.numpy()) for image in drawn]
        return images

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _decode(self, tokens: Tokens, snap: bool, sub_codes: Sequence[int]) -> Tensor:
        if tokens.codes is not None:
            return self.tokenizer.decode(embed_sub_codes(self.tokenizer, tokens.codes, sub_codes)).image
        assert tokens.latents is not None
        latents = tokens.latents.float()
        return self.tokenizer.decode(self.tokenizer.snap(latents) if snap else latents).image

    def _index(self, name: int | str) -> int:
        if not isinstance(name, str):
            try:
                label = operator.index(name)  # numpy's and torch's integers as well
            except TypeError as error:
                raise UserError(f"{name!r} is no class: name classes by whole numbers or by name") from error
            if not 0 <= label < self.num_classes:
                raise UserError(f"there is no class {label}: the generator knows 0 to {self.num_classes - 1}")
            return label
        if name not in self.class_to_idx:
            shown = ", ".join(list(self.class_to_idx)[:10]) + (", …" if self.num_classes > 10 else "")
            raise UserError(f"there is no class {name!r}: the generator knows {shown}")
        return self.class_to_idx[name]


def finite_images(decoded: tuple[Tensor, Tensor]) -> Tensor:
    """Return the images of :meth:`GenerationPipeline.decode_unchecked`.

    Raises:
        UserError: if they are not finite; in 8 bits they would pass for black ones.
    """
    images, finite = decoded
    if not bool(finite):
        raise UserError("decoded images are not finite: lower the guidance, or train generator and tokenizer again")
    return images


def snaps(sampler: Guidance) -> bool:
    """True if a sampler moves latents to the nearest points of the codebooks before they are decoded."""
    return isinstance(sampler, FlowSampler) and sampler.snap


def _warn_of_first_stage(record: GeneratorRecord, path: Path) -> None:
    decoded = record.full_spec.num_sub_codes if record.full_spec else 0
    if len(record.sub_codes) < decoded:
        reason = (
            f"It writes the sub-codes {[*record.sub_codes]} of the {decoded} that its tokenizer decodes; the other "
            "subspaces are set to zero"
        )
    elif "stage1" in real_path(path).parts:
        reason = "Its tokenizer has one codebook, so that its samples can be decoded"
    else:
        return
    warnings.warn(
        f"{path} is the first stage of a curriculum. {reason}. These are not the samples of the finished model: train "
        "stage 2 from it (make stage2), and sample from that",
        stacklevel=3,
    )
