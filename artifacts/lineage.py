"""Which codes a generator writes, and whose weights it began with: kept in its checkpoint and in lineage.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from polytoken.errors import UserError
from polytoken.files import file_sha256, write_text
from polytoken.generators.base import Generator
from polytoken.handover import carry_over
from polytoken.loading import load_generator, read_checkpoint, record_in, sub_codes

if TYPE_CHECKING:
    from datamodules.tokens import TokenDataModule


@dataclass(frozen=True)
class TokensRead:
    """The codes a run reads: some sub-codes (None: all) of one tokenizer, from one store."""

    store: str
    spec: dict[str, list]
    full_spec: dict[str, list]
    sub_codes: list[int] | None
    tokenizer_run: str
    tokenizer_fingerprint: str

    @classmethod
    def of(cls, data: TokenDataModule) -> TokensRead:
        """What a data module reads."""
        return cls(
            store=str(data.store),
            spec=data.spec.to_json(),
            full_spec=data.full_spec.to_json(),
            sub_codes=None if data.sub_codes is None else list(data.sub_codes),
            tokenizer_run=str(data.tokenizer_run),
            tokenizer_fingerprint=data.tokenizer_fingerprint,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for the checkpoint; where the store lies is not part of what the codes are."""
        return {name: value for name, value in asdict(self).items() if name != "store"}


def check_same_codes(record: dict[str, Any], tokens: TokensRead, checkpoint: Path, init_from: str | None) -> None:
    """Compare what a checkpoint writes with what the store holds.

    Raises:
        ValueError: if they are other sub-codes, of another grid, or of another tokenizer.
    """
    if record["tokenizer_fingerprint"] != tokens.tokenizer_fingerprint:
        raise UserError(
            f"{checkpoint} writes codes of {_tokenizer(record)}, and {tokens.store} holds codes of "
            f"{_tokenizer(tokens.to_json())}: read the store it was trained on, or start another run (run.stage)"
        )
    if record["full_spec"] != tokens.full_spec:
        raise UserError(
            f"{checkpoint} writes codes of {_shape(record['full_spec'])}, and {tokens.store} holds codes of "
            f"{_shape(tokens.full_spec)}: read the store it was trained on, or start another run (run.stage)"
        )
    if sub_codes(record) != sub_codes(tokens.to_json()):
        raise UserError(
            f"{checkpoint} writes the sub-codes {sub_codes(record)} of {_tokenizer(record)}, and the data are the "
            f"sub-codes {sub_codes(tokens.to_json())}: set data.init_args.sub_codes to those of the checkpoint"
        )
    source = record["lineage"]["init_from"]
    if init_from is not None and source is not None:
        file = checkpoint_file(init_from)
        if file.is_file() and file_sha256(file) != source["sha256"]:
            rank_zero_warn(
                f"{file} has changed since this run began with it; the run goes on with its own weights. "
                "To begin with the new ones, delete the run's directory or set run.stage to a new name."
            )


def begin_from(init_from: str | None, generator: Generator, tokens: TokensRead) -> dict[str, Any]:
    """Hand the weights of an earlier stage over to a new generator, and return the lineage of the run.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if it is not a generator's, its trunk has another shape, or its tokenizer was trained on since.
    """
    lineage: dict[str, Any] = {
        "tokenizer_run": tokens.tokenizer_run,
        "tokenizer_fingerprint": tokens.tokenizer_fingerprint,
        "store": tokens.store,
        "init_from": None,
    }
    if init_from is None:
        return lineage
    checkpoint, path = read_checkpoint(init_from)
    source = record_in(checkpoint, path)
    sub_code = sub_code_of(source, tokens, path)
    handover = carry_over(load_generator(path).state_dict(), generator, sub_code)
    rank_zero_info(f"weights of {path}\n{handover}")
    lineage["init_from"] = {
        "path": str(path),
        "sha256": file_sha256(path),
        "step": checkpoint["global_step"],
        "tokenizer_fingerprint": source["tokenizer_fingerprint"],
        "sub_codes": source["sub_codes"],
        "sub_code": sub_code,
        "carried": list(handover.carried),
        "fresh": list(handover.fresh),
        "left_behind": list(handover.left_behind),
    }
    return lineage


def sub_code_of(source: dict[str, Any], tokens: TokensRead, path: Path) -> int | Literal["all"] | None:
    """Which of a run's sub-codes the one of an earlier stage is; ``all`` if it wrote the very same ones.

    None if it wrote another tokenizer's, or several that are not the same.

    Raises:
        ValueError: if both read the same run's tokenizer, but it is no longer the same tokenizer.
    """
    if source["tokenizer_fingerprint"] != tokens.tokenizer_fingerprint:
        if Path(source["tokenizer_run"]).resolve() == Path(tokens.tokenizer_run).resolve():
            raise UserError(
                f"{path} was trained on codes of {_tokenizer(source)}, and {tokens.store} holds codes of "
                f"{_tokenizer(tokens.to_json())}: the tokenizer was trained on in between, so train the earlier stage "
                "anew on this store (delete its directory or give it another run.stage)"
            )
        return None
    codes, here = sub_codes(source), sub_codes(tokens.to_json())
    if codes == here:
        return "all"
    return here.index(codes[0]) if len(codes) == 1 and codes[0] in here else None


def checkpoint_file(run: str | Path) -> Path:
    """The last checkpoint of a run's directory, or the file itself."""
    return Path(run) / "checkpoints" / "last.ckpt" if Path(run).is_dir() else Path(run)


def write_lineage(directory: Path, lineage: dict[str, Any]) -> None:
    """Write ``lineage.json``, whole or not at all."""
    write_text(directory / "lineage.json", json.dumps(lineage, indent=2) + "\n")


def _shape(spec: dict[str, list]) -> str:
    grids = ", ".join(f"{height} × {width}" for height, width in spec["scales"])
    return f"{spec['codebook_sizes']} entries on a grid of {grids}"


def _tokenizer(record: dict[str, Any]) -> str:
    return f"the tokenizer {record['tokenizer_run']} (fingerprint {record['tokenizer_fingerprint'][:12]})"
