"""A lost rank is named by the others, which exit; the last checkpoint is intact."""

import inspect
import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from artifacts.checkpoint_files import fault
from callbacks.steer import rank_watch
from callbacks.steer.rank_watch import RankWatch
from tests.support.commands import REPOSITORY

LOST = "was lost: no sign of life"


@pytest.mark.cluster
def test_a_lost_rank_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.lost_rank"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    results = {result["how"]: result for result in map(json.loads, done.stdout.splitlines())}
    said = {"kill": f"rank 1 {LOST}", "stop": f"rank 1 {LOST}", "kill 0": f"rank 0 {LOST}"}
    said["fail"] = "rank 1 failed (OSError: the disk fell off)"
    assert results.keys() == said.keys()
    for how, result in results.items():
        assert result["code"] == 1, result
        assert said[how] in result["said"], result
        assert "The last checkpoint is whole: start the run again" in result["said"]
        last = tmp_path / how / "digits/stage2/fq_dual/checkpoints/last.ckpt"
        assert fault(last) is None
        assert torch.load(last, weights_only=True)["global_step"] == 2


def test_the_defaults_detect_a_loss_within_a_minute() -> None:
    defaults = {name: value.default for name, value in inspect.signature(RankWatch).parameters.items()}
    assert defaults["seconds"] * (defaults["beats"] + 2) < 60


class Store(dict):
    """A store like torch's, for ranks that are threads."""

    broken = False

    def clone(self) -> "Store":
        return self

    def add(self, key: str, number: int) -> int:
        if self.broken:
            raise RuntimeError("Connection reset")
        self[key] = self.get(key, 0) + number
        return self[key]

    def check(self, keys: list[str]) -> bool:
        return keys[0] in self

    def set(self, key: str, value: str) -> None:
        self[key] = Value(value)

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        end = time.monotonic() + timeout.total_seconds()
        while not all(key in self for key in keys):
            if time.monotonic() > end:
                raise RuntimeError("timed out")
            time.sleep(0.001)


class Value(str):
    def decode(self) -> str:
        return str(self)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[RankWatch]:
    """Three ranks, each of which records its exit."""
    store, watches = Store(), []
    monkeypatch.setattr(rank_watch, "_get_default_store", lambda: store)
    monkeypatch.setattr(rank_watch.dist, "PrefixStore", lambda prefix, store: store)
    monkeypatch.setattr(rank_watch.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(rank_watch.dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(rank_watch.logging, "shutdown", lambda: None)
    monkeypatch.setattr(rank_watch.os, "_exit", lambda code: None)
    for rank in range(3):
        monkeypatch.setattr(rank_watch.dist, "get_rank", lambda rank=rank: rank)
        watches.append(RankWatch(0.02, 10))
        watches[-1].setup(None, None, "fit")
    time.sleep(0.1)
    yield watches
    for watch in watches:
        watch._leave("")


def test_a_rank_that_finishes_is_not_lost(ranks: list[RankWatch]) -> None:
    ranks[1].teardown(None, None, "fit")
    time.sleep(0.5)
    assert not ranks[2]._found.is_set()
    ranks[0].teardown(None, None, "fit")
    ranks[2]._store.broken = True  # the process of rank 0 ends at once
    time.sleep(0.5)
    assert not ranks[2]._found.is_set()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_was_asked_to_stop_ends_the_others_after_a_while(
    rank: int, ranks: list[RankWatch], caplog: pytest.LogCaptureFixture
) -> None:
    """In a prediction it leaves alone, and the others would wait for it after their last batch."""
    waits = ranks[2]
    waits.seconds = ranks[rank].seconds = 0.05
    ranks[rank].on_exception(None, None, SystemExit(75))
    waits._store.broken = rank == 0  # which serves it
    assert not waits._found.is_set(), "it has time to leave as well"
    waits._found.wait(60)
    assert f"rank 2 exits: rank {rank} was asked to stop." in caplog.text


def test_a_rank_that_was_asked_to_stop_is_named_where_the_connection_broke(
    ranks: list[RankWatch], caplog: pytest.LogCaptureFixture
) -> None:
    ranks[0].on_exception(None, None, SystemExit(75))
    ranks[1].on_exception(None, None, RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer"))
    assert "rank 1 exits: rank 0 was asked to stop." in caplog.text


def test_a_checkpoint_that_fails_is_a_failure(ranks: list[RankWatch], caplog: pytest.LogCaptureFixture) -> None:
    """`CheckpointException` is no `Exception`."""
    ranks[1].on_exception(None, None, CheckpointException("write", {1: (OSError("full"), None)}))
    ranks[2]._found.wait(60)
    assert "rank 2 exits: rank 1 failed (CheckpointException" in caplog.text


def test_rank_zero_is_lost_before_its_first_beat_was_read(
    ranks: list[RankWatch], caplog: pytest.LogCaptureFixture
) -> None:
    ranks[0]._stop.set()
    for watch in ranks[1:]:
        watch._counts = {}
    ranks[1]._store.broken = True
    ranks[1].on_exception(None, None, RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer"))
    assert "rank 0 was lost" in caplog.text


def test_a_failure_before_the_watch_starts_is_reported(
    ranks: list[RankWatch], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks[1]._leave("")
    ranks[1]._threads, store = [], ranks[1]._store
    del store["left 1"], store["beat 1"]  # as before setup
    monkeypatch.setattr(rank_watch.dist, "get_rank", lambda: 1)
    ranks[1].on_exception(None, None, FileNotFoundError("no such folder: data"))
    time.sleep(0.4)
    assert "rank 1 failed (FileNotFoundError: no such folder: data)" in caplog.text
    assert ranks[0]._found.is_set() and ranks[2]._found.is_set()


def test_ranks_that_fail_alike_report_themselves(ranks: list[RankWatch], caplog: pytest.LogCaptureFixture) -> None:
    for watch in ranks:
        watch.on_exception(None, None, ValueError("no such option"))
    time.sleep(0.3)
    assert not caplog.text


def test_a_broken_connection_names_the_lost_rank(
    ranks: list[RankWatch], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks[2]._stop.set()  # no more beats, and no message
    found, waited = ranks[1]._found, []
    monkeypatch.setattr(
        ranks[1], "_found", SimpleNamespace(wait=lambda end: waited.append(found.wait(end)), set=found.set)
    )
    ranks[1].on_exception(None, None, RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer"))
    assert waited == [True], "before its patience ran out"
    time.sleep(0.4)
    assert ranks[0]._found.is_set()
    assert caplog.text.count("rank 2 was lost") == 2 and "rank 0 was lost" not in caplog.text


def test_a_single_rank_is_not_watched() -> None:
    watch = RankWatch()
    watch.setup(None, None, "fit")
    watch.on_exception(None, None, ValueError())
    watch.teardown(None, None, "fit")
    assert not watch._threads
