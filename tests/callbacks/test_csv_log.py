from __future__ import annotations

import csv
from pathlib import Path

import torch

from callbacks.csv_log import CsvLog, MetricsTable


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_grow_and_rows_stay(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "metrics.csv")
    table.save()
    assert not table.path.exists()
    table.log_metrics({"loss": torch.tensor(0.5)}, step=0)
    table.save()
    table.log_metrics({"loss": 0.25}, step=1)
    table.log_metrics({"recall": 0.75}, step=1)
    table.save()
    table.save()
    assert rows(table.path) == [
        {"step": "0", "loss": "0.5", "recall": ""},
        {"step": "1", "loss": "0.25", "recall": ""},
        {"step": "1", "loss": "", "recall": "0.75"},
    ]


def test_an_earlier_file_is_continued_where_the_checkpoint_stood(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsTable(path)
    for step in range(4):
        first.log_metrics({"loss": step / 4}, step=step)
    first.save()
    second = MetricsTable(path)
    assert second.rows == 4
    second.keep(2, before_step=2)
    second.log_metrics({"loss": 7.0, "more": 1}, step=2)
    assert second.rows == 3
    second.save()
    assert [(row["step"], row["loss"], row["more"]) for row in rows(path)] == [
        ("0", "0.0", ""),
        ("1", "0.25", ""),
        ("2", "7.0", "1"),
    ]


def test_the_training_row_of_the_checkpoints_own_step_stays(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "metrics.csv")
    for step in (1, 2, 3):
        table.log_metrics({"train/loss": step / 4}, step=step)
    table.log_metrics({"val/b/recall_at_1": 1.0}, step=2)
    table.save()
    # Written after step 2 was done and before it was logged, which is row 1.
    again = MetricsTable(table.path)
    again.keep(1, before_step=3)
    assert [(row["step"], row["train/loss"]) for row in rows(table.path)] == [
        ("1", "0.25"),
        ("2", "0.5"),
    ]


def test_versions_are_reserved_and_given_back(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    one, two = (CsvLog(str(root), name="paper/x") for _ in range(2))
    assert not root.exists()
    assert (one.version, two.version) == (0, 1)
    one.log_metrics({"loss": 1.0}, step=0)
    one.finalize("success")
    for log in (one, two):
        log.discard_if_empty()
    assert [path.name for path in (root / "paper" / "x").iterdir()] == ["version_0"]


def test_nothing_is_left_of_the_only_run(tmp_path: Path) -> None:
    log = CsvLog(str(tmp_path / "runs"), name="paper/x")
    assert Path(log.log_dir).is_dir()
    log.discard_if_empty()
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_in_its_folder(tmp_path: Path) -> None:
    CsvLog(str(tmp_path), name="x").log_metrics({"a": 1.0}, step=0)
    log = CsvLog(str(tmp_path), name="x")
    log.continue_folder(tmp_path / "x" / "version_7")
    assert log.version == 7
    assert log.log_dir == str(tmp_path / "x" / "version_7")
