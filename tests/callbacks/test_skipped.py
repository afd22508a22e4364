from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from callbacks.skipped import SkippedImages
from datamodules.folder import FolderData
from tests.datamodules.toys import ToyBenchmark, ToyModule, fit, jpeg, trainer, write_folder


def broken_folder(root: Path, *broken: int) -> list[str]:
    names = write_folder(root)
    for i in broken:
        (root / names[i]).write_bytes(jpeg(i)[:60])
    return names


def data(root: Path, **options: Any) -> FolderData:
    return FolderData(
        str(root),
        "pairs",
        batch_size=4,
        eval_batch_size=4,
        num_workers=0,
        on_error="skip",
        **options,
    )


def counts(folder: Path) -> dict[str, int]:
    lines = (folder / "skipped.txt").read_text().splitlines()
    return {name: int(times) for name, times in (line.split("\t") for line in lines)}


def test_training_tells_count_and_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = broken_folder(tmp_path / "data", 2, 7)
    logger = CSVLogger(tmp_path / "runs")
    with caplog.at_level(logging.WARNING):
        fit(data(tmp_path / "data"), callbacks=[SkippedImages()], logger=logger, max_epochs=3)
    assert f"2 broken or missing images were left out: {names[2]}, {names[7]}" in caplog.text
    assert counts(Path(logger.log_dir)) == {names[2]: 3, names[7]: 3}


def test_only_ten_names_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [tmp_path / f"{i:02d}.jpg" for i in range(14)]
    files[3].write_bytes(jpeg(1))
    benchmark = ToyBenchmark(files=files, queries=2)
    logger = CSVLogger(tmp_path / "runs")
    write_folder(tmp_path / "data")
    with caplog.at_level(logging.WARNING):
        trainer(callbacks=[SkippedImages()], logger=logger).validate(
            ToyModule(), datamodule=data(tmp_path / "data", benchmarks=[benchmark]), verbose=False
        )
    assert "13 broken or missing images were left out: 00.jpg, " in caplog.text
    assert "10.jpg and 3 more" in caplog.text
    assert "11.jpg" not in caplog.text
    expected = {path.name for path in files} - {"03.jpg"}
    assert set(counts(Path(logger.log_dir))) == expected


def test_nothing_is_told_when_nothing_was_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path / "data")
    logger = CSVLogger(tmp_path / "runs")
    with caplog.at_level(logging.WARNING):
        fit(data(tmp_path / "data"), callbacks=[SkippedImages()], logger=logger)
    assert "left out" not in caplog.text
    assert not list(tmp_path.glob("runs/**/skipped.txt"))


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    names = broken_folder(tmp_path / "data", 2)
    saving = ModelCheckpoint(tmp_path / "saved", every_n_epochs=1, save_last=True)
    fit(
        data(tmp_path / "data"),
        callbacks=[SkippedImages(), saving],
        enable_checkpointing=True,
        max_epochs=2,
    )
    callback = SkippedImages()
    checkpoint = tmp_path / "saved" / "last.ckpt"
    fit(data(tmp_path / "data"), callbacks=[callback], max_epochs=3, ckpt_path=checkpoint)
    assert callback.met == {names[2]: 3}
