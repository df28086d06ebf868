"""Batches of codes or latents: views by epoch, exact resuming, selection of sub-codes, and incompatible stores."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from artifacts.token_manifest import TokenStoreError
from artifacts.token_store import TokenStore
from datamodules import TokenDataModule
from polytoken.errors import UserError
from polytoken.specs import TokenSpec
from tests.datamodules.memory import quiet_trainer
from tests.support.token_store import LATENTS, codes_of, latents_of, plan_of, seal, write_store, write_stores

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Diary(LightningModule):
    """Records the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[tuple[list[int], list]] = []
        self.evaluated: list[dict[str, torch.Tensor]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> torch.Tensor:
        tokens = batch["latents"] if "latents" in batch else batch["codes"]
        self.batches.append((batch["index"].tolist(), tokens.tolist()))
        return self.weight * 0

    def validation_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> None:
        self.evaluated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stores(tmp_path_factory.mktemp("tokens"))


def fit(data: TokenDataModule, ckpt_path: Path | None = None, **arguments: object) -> list:
    diary = Diary()
    trainer = quiet_trainer(**({"max_steps": 13, "limit_val_batches": 0} | arguments))
    trainer.fit(diary, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return diary.batches


@pytest.fixture(scope="module")
def uninterrupted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    every = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    data = TokenDataModule(str(root), batch_size=4, num_workers=0, seed=3)
    return fit(data, enable_checkpointing=True, callbacks=[every]), folder


def test_an_epoch_shows_each_image_once_in_some_view(root: Path, uninterrupted: tuple[list, Path]) -> None:
    batches, _ = uninterrupted
    plan, seen = plan_of("train"), set()
    for epoch in (0, 1):
        rows = [
            row for indices, codes in batches[5 * epoch : 5 * epoch + 5] for row in zip(indices, codes, strict=True)
        ]
        assert len({index for index, _ in rows}) == len(rows) == 20
        for index, codes in rows:
            (view,) = (view for view, stored in enumerate(codes_of(plan, index)) if stored.tolist() == codes)
            seen.add((epoch, index, view))
    assert {view for _, _, view in seen} == {0, 1, 2}
    first, second = ({(index, view) for e, index, view in seen if e == epoch} for epoch in (0, 1))
    assert len(first & second) < 15, "another view in another epoch"


@pytest.mark.parametrize(("step", "num_workers"), [(0, 2), (3, 0), (7, 2)])
def test_workers_and_interruptions_change_nothing(
    root: Path, uninterrupted: tuple[list, Path], step: int, num_workers: int
) -> None:
    batches, folder = uninterrupted
    data = TokenDataModule(str(root), batch_size=4, num_workers=num_workers, seed=3)
    assert fit(data, folder / f"step={step}.ckpt" if step else None) == batches[step:]


def test_validation_reads_the_centre_crops_in_order(root: Path) -> None:
    diary = Diary()
    data = TokenDataModule(str(root), sub_codes=[1], batch_size=4, num_workers=0)
    quiet_trainer().validate(diary, datamodule=data, verbose=False)
    batch = {key: torch.cat([rows[key] for rows in diary.evaluated]) for key in diary.evaluated[0]}
    assert batch["index"].tolist() == list(range(7)) and batch["label"].tolist() == [0, 1, 0, 1, 0, 1, 0]
    expected = np.stack([codes_of(plan_of("validation"), image)[0, 1:] for image in range(7)])
    assert torch.equal(batch["codes"], torch.from_numpy(expected))
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_latents_are_read_in_float32(tmp_path: Path) -> None:
    data = TokenDataModule(str(write_stores(tmp_path, **LATENTS)), batch_size=4, num_workers=0)
    assert data.spec is None and data.full_spec is None and data.sub_codes == []
    assert data.latents is not None and (data.latents.channels, data.latents.grid) == (4, (2, 3))
    batches = list(data.val_dataloader())
    assert all(set(batch) == {"latents", "label", "index"} for batch in batches)
    latents = torch.cat([batch["latents"] for batch in batches])
    expected = np.stack([latents_of(plan_of("validation", **LATENTS), image)[0] for image in range(7)])
    assert latents.dtype == torch.float32
    assert torch.equal(latents, torch.from_numpy(expected.astype(np.float16)).float())
    with pytest.raises(UserError, match=r"data.sub_codes=\[0\]: .* holds latents of a tokenizer without codes"):
        TokenDataModule(str(tmp_path), sub_codes=[0])


@pytest.mark.parametrize(("step", "num_workers"), [(3, 0), (7, 2)])
def test_a_run_on_latents_resumes_exactly(tmp_path: Path, step: int, num_workers: int) -> None:
    root = write_stores(tmp_path / "tokens", **LATENTS)
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(
        TokenDataModule(str(root), batch_size=4, num_workers=0, seed=3), enable_checkpointing=True, callbacks=[every]
    )
    again = TokenDataModule(str(root), batch_size=4, num_workers=num_workers, seed=3)
    assert fit(again, tmp_path / f"step={step}.ckpt") == whole[step:]


def test_latents_that_are_not_finite_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stores(tmp_path, **LATENTS)
    monkeypatch.setattr(TokenStore, "tokens", lambda self, *_: np.full(self.plan.shape, np.nan, np.float16))
    data = TokenDataModule(str(tmp_path), batch_size=4, num_workers=0)
    with pytest.raises(TokenStoreError, match=r"train, image \d+: a latent is nan, and float16 holds finite numbers"):
        next(iter(data.train_dataloader()))


def test_specs_describe_the_selected_codes(root: Path) -> None:
    data = TokenDataModule(str(root), sub_codes=[1])
    assert data.spec == TokenSpec((12,), ((2, 3),)) and data.full_spec == TokenSpec((16, 12), ((2, 3),))
    assert (data.num_classes, data.class_to_idx) == (2, {"even": 0, "odd": 1})
    assert data.tokenizer_run == "runs/digits/tokenizer/fq_dual" and data.tokenizer_fingerprint.startswith("0123")
    assert TokenDataModule(str(root)).spec == data.full_spec


@pytest.mark.parametrize(
    ("sub_codes", "said"), [([2], "has sub-codes 0 to 1, and no 2"), ([], "name each"), ([0, 0], "name each")]
)
def test_missing_sub_codes_are_rejected(root: Path, sub_codes: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TokenDataModule(str(root), sub_codes)


def test_splits_of_two_tokenizers_are_rejected(tmp_path: Path) -> None:
    write_store(tmp_path / "train", plan_of("train"))
    write_store(tmp_path / "validation", plan_of("validation", 7, tokenizer_fingerprint="f" * 64))
    with pytest.raises(TokenStoreError, match=r"validation differ in tokenizer_fingerprint, 0123.* and ffff"):
        TokenDataModule(str(tmp_path))


def test_a_run_does_not_resume_with_codes_of_another_tokenizer(
    tmp_path: Path, uninterrupted: tuple[list, Path]
) -> None:
    other = TokenDataModule(str(write_stores(tmp_path, tokenizer_fingerprint="f" * 64)), batch_size=4, seed=3)
    with pytest.raises(TokenStoreError, match=r"\(ffffffffffff…\), and the one whose tokens this run was trained on"):
        fit(other, uninterrupted[1] / "step=3.ckpt")


def test_a_flipped_code_is_found_before_the_first_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code stays within its codebook, and the file keeps size and time; an intact store is read only once."""
    write_stores(tmp_path)
    data = TokenDataModule(str(tmp_path), batch_size=4, num_workers=0)
    fit(data, max_steps=1)
    with monkeypatch.context() as again:
        again.setattr("artifacts.token_store.file_sha256", lambda _: pytest.fail("read again"))
        fit(data, max_steps=1)

    shard = tmp_path / "train/shard_00001.arrow"
    before, content = shard.stat(), bytearray(shard.read_bytes())
    codes = TokenDataModule(str(tmp_path)).dataset("train").store.tokens(9, 2)
    content[content.index(codes.tobytes())] ^= 1
    with shard.open("r+b") as file:
        file.write(content)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    damaged = TokenDataModule(str(tmp_path), batch_size=4, num_workers=0)
    said = r"train/shard_00001.arrow has the SHA-256 \w{12}…, and manifest.json says \w{12}…: .*delete .*make tokens"
    for _ in range(2):
        with pytest.raises(TokenStoreError, match=said):
            fit(damaged, max_steps=1)
    quiet_trainer().validate(Diary(), datamodule=damaged, verbose=False)


def test_codes_beyond_their_codebook_are_reported(tmp_path: Path) -> None:
    """A manifest that does not match its shards; no invalid code reaches an embedding table."""
    write_stores(tmp_path)
    for split in ("train", "validation"):
        manifest = tmp_path / split / "manifest.json"
        content = json.loads(manifest.read_text())
        content["spec"]["codebook_sizes"][1] = 5
        seal(manifest, content)
    data = TokenDataModule(str(tmp_path), batch_size=20, num_workers=0)
    with pytest.raises(TokenStoreError, match=r"train, image \d+: code \d+ in codebook 1, which has codes 0 to 4"):
        next(iter(data.train_dataloader()))


def test_classes_beyond_those_of_the_store_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes are checked here, since checks in a training step would make the host wait for the device."""
    write_stores(tmp_path)
    monkeypatch.setattr(TokenStore, "label", lambda self, row: len(self.class_to_idx))
    data = TokenDataModule(str(tmp_path), batch_size=20, num_workers=0)
    with pytest.raises(TokenStoreError, match=r"train, image \d+: class \d+, and the store has classes 0 to \d"):
        next(iter(data.train_dataloader()))


def test_a_store_in_place_of_the_other_split_is_rejected(tmp_path: Path) -> None:
    write_stores(tmp_path)
    write_store(tmp_path / "again/train", plan_of("train"))
    (tmp_path / "validation").rename(tmp_path / "away")
    (tmp_path / "again/train").rename(tmp_path / "validation")
    with pytest.raises(TokenStoreError, match="validation holds the split train: write both stores again"):
        TokenDataModule(str(tmp_path))


def test_splits_have_tokens_of_one_shape(tmp_path: Path) -> None:
    write_store(tmp_path / "train", plan_of("train"))
    other = TokenSpec((16, 12), ((3, 2),))
    write_store(tmp_path / "validation", plan_of("validation", spec=other))
    with pytest.raises(TokenStoreError, match="differ in spec, .*: write both stores again"):
        TokenDataModule(str(tmp_path))
