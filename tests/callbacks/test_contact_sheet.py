from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from callbacks.contact_sheet import ContactSheet, choose
from callbacks.retrieval import RetrievalEvaluation
from cirlab.errors import UserError
from cirlab.retrieval.evaluation import Ranking
from tests.callbacks.lookup import LookupBenchmark, LookupData, LookupModule, quiet_trainer


def ranking(ranks: list[int]) -> Ranking:
    images = torch.zeros(len(ranks), 10, dtype=torch.long)
    return Ranking(tuple(range(len(ranks))), images, images[:, 0], torch.tensor(ranks))


@pytest.mark.parametrize(
    ("ranks", "hits", "misses"),
    [
        ([1, 2, 3, 10] * 5 + [11, 50] * 5, 3, 3),
        ([1] * 20, 6, 0),
        ([99] * 20, 0, 6),
        ([1] * 20 + [99], 5, 1),
        ([1, 99], 1, 1),
    ],
)
def test_half_of_the_rows_are_hits(ranks: list[int], hits: int, misses: int) -> None:
    chosen = choose(ranking(ranks), count=6, seed=0)
    assert len(set(chosen)) == len(chosen)
    drawn = [ranks[row] for row in chosen]
    assert drawn == sorted(drawn)
    assert (sum(r <= 10 for r in drawn), sum(r > 10 for r in drawn)) == (hits, misses)


def test_the_seed_decides_which() -> None:
    many = ranking([1, 99] * 100)
    assert choose(many, 6, seed=0) == choose(many, 6, seed=0)
    assert choose(many, 6, seed=0) != choose(many, 6, seed=1)


def validate(folder: Path, *callbacks: Any, run: str = "validate", **options: Any) -> None:
    logger = CSVLogger(save_dir=folder, name="exp", version=0)
    trainer = quiet_trainer(callbacks=list(callbacks), logger=logger)
    data = LookupData(LookupBenchmark(**options), LookupBenchmark("other/one"), on_error="skip")
    getattr(trainer, run)(LookupModule(), datamodule=data, verbose=False)


@pytest.mark.parametrize("run", ["validate", "test"])
def test_every_benchmark_gets_a_sheet_in_the_run_folder(tmp_path: Path, run: str) -> None:
    validate(tmp_path, ContactSheet(rows=3), RetrievalEvaluation(), run=run)
    folder = tmp_path / "exp" / "version_0" / "contact_sheets"
    assert sorted(path.name for path in folder.iterdir()) == ["lookup.png", "other_one.png"]
    few = PIL.Image.open(folder / "lookup.png")
    few.load()
    validate(tmp_path, ContactSheet(rows=5), RetrievalEvaluation(), run=run)
    assert PIL.Image.open(folder / "lookup.png").height > few.height


def test_unreadable_images_are_not_drawn(tmp_path: Path) -> None:
    """Query 4 looks for image 4, which is gone, and image 5, which takes its place."""
    validate(tmp_path, RetrievalEvaluation(), ContactSheet(rows=100), broken=[4, 16])
    assert (tmp_path / "exp" / "version_0" / "contact_sheets" / "lookup.png").is_file()


def test_a_failed_write_leaves_the_previous_sheet_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate(tmp_path, RetrievalEvaluation(), ContactSheet(rows=2))
    path = tmp_path / "exp" / "version_0" / "contact_sheets" / "lookup.png"
    before = path.read_bytes()

    def half(image: PIL.Image.Image, target: Path, **_: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(PIL.Image.Image, "save", half)
    with pytest.raises(OSError, match="no space"):
        validate(tmp_path, RetrievalEvaluation(), ContactSheet(rows=2))
    assert path.read_bytes() == before
    assert {file.suffix for file in path.parent.iterdir()} == {".png"}


def test_without_rankings_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no callback makes any"):
        validate(tmp_path, ContactSheet())


def test_sheets_without_rows_are_refused() -> None:
    with pytest.raises(UserError, match="0 rows"):
        ContactSheet(rows=0)
