from __future__ import annotations

import resource
from pathlib import Path
from typing import Any, BinaryIO

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from callbacks.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from cirlab.errors import UserError

STATE = {"state_dict": {"w": torch.arange(1000.0)}}


@pytest.fixture
def small_disk() -> Any:
    """Files can grow to 64 KiB, as if the disk were full then."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path: Path) -> None:
    writer, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    writer.save_checkpoint(STATE, path)
    with pytest.raises(UserError, match=r"last\.ckpt cannot be written .* is whole; free space"):
        writer.save_checkpoint({"state_dict": {"w": torch.zeros(100_000)}}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.equal(torch.load(path)["state_dict"]["w"], STATE["state_dict"]["w"])


def test_a_file_takes_the_place_of_a_sharded_runs_folder(tmp_path: Path) -> None:
    """A run that was sharded into folders goes on, under its name, without sharding."""
    path = tmp_path / "last.ckpt"
    path.mkdir()
    (path / "meta.pt").write_bytes(b"a part")
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    assert path.is_file() and list(tmp_path.iterdir()) == [path]


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.mkdir()
    (path / "diary.txt").write_text("dear diary")
    with pytest.raises(UserError, match=r"last\.ckpt cannot be written, .* move it elsewhere"):
        AtomicCheckpointIO().save_checkpoint(STATE, path)
    assert list(tmp_path.rglob("*")) == [path, path / "diary.txt"]


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_the_folder_of_a_sharded_run_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.mkdir()
    (path / "meta.pt").write_bytes(b"a part")
    with pytest.raises(UserError, match=r"the checkpoint before it is whole"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": torch.zeros(100_000)}, path)
    assert list(tmp_path.rglob("*")) == [path, path / "meta.pt"]


def test_a_write_that_fails_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(state: Any, file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match=r"No space left on device\), none was there before"):
        AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "deep" / "last.ckpt")
    assert list((tmp_path / "deep").iterdir()) == []


def fit(folder: Path, *callbacks: L.Callback, epochs: int = 1, **options: Any) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=5,
        limit_val_batches=2,
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        **options,
    )
    trainer.fit(BoringModel(), datamodule=BoringDataModule())
    return trainer


def test_the_last_checkpoint_is_one_file_and_holds_the_end(tmp_path: Path) -> None:
    fit(tmp_path, LastCheckpoint(every_n_train_steps=2), epochs=2)
    folder = tmp_path / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 10


def test_a_metric_that_no_benchmark_has_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"monitor is val/wrld/recall_at_1, .* are none"):
        fit(tmp_path, BestCheckpoint(monitor="val/wrld/recall_at_1"))


class TrainMetric(L.Callback):
    def on_train_batch_end(self, *_: Any) -> None:
        self.log("train/loss", 1.0)


def test_a_metric_that_nothing_logs_is_told_with_those_that_are(tmp_path: Path) -> None:
    """At the first validation: what a method of one's own logs is not known before."""
    with pytest.raises(UserError) as caught:
        fit(tmp_path, BestCheckpoint(monitor="val_loss"), TrainMetric())
    assert str(caught.value) == (
        "--best_checkpoint.init_args.monitor is val_loss, but this run logs train/loss; name one "
        "of these, or set it to null to keep the last checkpoint alone"
    )


def test_no_metric_keeps_no_best_checkpoint(tmp_path: Path) -> None:
    fit(tmp_path, BestCheckpoint(monitor=None))
    assert not list(tmp_path.rglob("*.ckpt"))
