from __future__ import annotations

import json
from pathlib import Path

import pytest

from cirlab.reporting.run import (
    Run,
    experiments_that_ran,
    newest_with_last,
    newest_with_results,
    runs_of,
    write_json,
)


def make(root: Path, name: str, *files: str) -> None:
    for file in files:
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")


def test_versions_are_numbers_not_words(tmp_path: Path) -> None:
    for number in (2, 10, 9):
        make(tmp_path, f"paper/x/version_{number}", "run.json")
    make(tmp_path, "paper/x/version_old", "run.json")
    assert [run.number for run in runs_of("paper/x", tmp_path)] == [10, 9, 2]


def test_the_newest_that_has_what_is_needed(tmp_path: Path) -> None:
    make(tmp_path, "x/version_0", "checkpoints/last.ckpt", "results.json")
    make(tmp_path, "x/version_1", "checkpoints/last.ckpt")
    make(tmp_path, "x/version_2", "results.json")
    make(tmp_path, "x/version_3", "run.json")
    last, results = newest_with_last("x", tmp_path), newest_with_results("x", tmp_path)
    assert last is not None
    assert results is not None
    assert (last.number, results.number) == (1, 2)
    assert newest_with_last("y", tmp_path) is None
    assert experiments_that_ran(tmp_path) == ["x"]


def test_the_best_checkpoint_or_else_the_last(tmp_path: Path) -> None:
    make(tmp_path, "version_0", "checkpoints/last.ckpt")
    run = Run(tmp_path / "version_0")
    assert run.best.name == "last.ckpt"
    make(tmp_path, "version_0", "checkpoints/best.ckpt")
    assert run.best.name == "best.ckpt"


def test_json_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "results.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}

    def fail(self: Path, text: str, **_: str) -> int:
        with self.open("w") as file:
            file.write(text[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
