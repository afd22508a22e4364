"""Results one can look at: queries and rankings drawn as pictures."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L

from cirlab.benchmarks.base import Benchmark
from cirlab.errors import UserError
from cirlab.records import Image
from cirlab.reporting import sheet
from cirlab.retrieval.evaluation import Ranking

FOLDER = "contact_sheets"

#: Most images found that a row shows; submissions rank more.
COLUMNS = 10


class ContactSheet(L.Callback):
    """Draws `<log dir>/contact_sheets/<benchmark>.png` after every evaluation of images.

    A row shows a query, its target, and the best images with the targets among them framed.
    Half of the rows are hits and half are misses, as far as there are enough of both. The run
    record brings the sheets to MLflow.

    Args:
        rows: queries per sheet.
        seed: of the order in which queries are looked through for hits and misses.
    """

    def __init__(self, rows: int = 12, seed: int = 0) -> None:
        if rows < 1:
            raise UserError(f"a contact sheet of {rows} rows shows nothing; set rows to 1 or more")
        self.rows = rows
        self.seed = seed

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not has_rankings(trainer):
            raise UserError(
                "ContactSheet draws rankings, but no callback makes any; add "
                "callbacks.retrieval.RetrievalEvaluation or remove ContactSheet"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._draw_all(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._draw_all(trainer)

    def _draw_all(self, trainer: L.Trainer) -> None:
        # Every process asks: the trainer broadcasts the answer of the first.
        folder = Path(trainer.log_dir or trainer.default_root_dir) / FOLDER
        benchmarks = {b.name: b for b in trainer.datamodule.benchmarks}  # type: ignore[attr-defined]
        for name, ranking in rankings_of(trainer).items():
            if isinstance(benchmarks[name].gallery[0], Image):
                self._draw(benchmarks[name], ranking, folder / f"{name.replace('/', '_')}.png")

    def _draw(self, benchmark: Benchmark, ranking: Ranking, path: Path) -> None:
        """Write one sheet; an interrupted or failed write leaves the previous one whole."""
        rows = [_row(benchmark, ranking, row) for row in choose(ranking, self.rows, self.seed)]
        title = f"{benchmark.name}: {len(ranking.queries):,} queries, targets framed green"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        try:
            sheet.draw(rows, title).save(partial, format="PNG")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def choose(
    ranking: Ranking,
    count: int,
    seed: int,
    among: Sequence[int] | None = None,
    columns: int = COLUMNS,
) -> list[int]:
    """Rows of a ranking to draw: half hits, half misses, best ranks first.

    The order in which rows are looked through depends on the seed alone, so that the sheets of
    two runs or epochs show the same queries as far as these stay hits or misses.

    Args:
        ranking: of all queries.
        count: rows to draw.
        seed: of that order.
        among: rows to choose from; None: all.
        columns: images of a row; a target among them is a hit.
    """
    order = list(range(len(ranking.queries)) if among is None else among)
    random.Random(seed).shuffle(order)
    ranks = ranking.ranks.tolist()
    shown = min(columns, ranking.images.shape[1])
    hits = [row for row in order if ranks[row] <= shown]
    misses = [row for row in order if ranks[row] > shown]
    wanted = max(count // 2, count - len(misses))
    chosen = hits[:wanted]
    chosen += misses[: count - len(chosen)]
    return sorted(chosen, key=lambda row: (ranks[row], row))


def _row(benchmark: Benchmark, ranking: Ranking, row: int) -> sheet.Row:
    query = benchmark.queries[ranking.queries[row]]
    places = ranking.images[row, :COLUMNS].tolist()
    found = [image_at(benchmark, place) for place in places if place >= 0]
    target = int(ranking.targets[row])
    return sheet.Row(
        image=query.image.load() if query.image else None,
        text=query.text,
        target=image_at(benchmark, target).load() if target >= 0 else None,
        found=[image.load() for image in found],
        correct=[image.id in query.targets for image in found],
        rank=int(ranking.ranks[row]),
    )


def image_at(benchmark: Benchmark, place: int) -> Image:
    """An image of the gallery by its position."""
    item = benchmark.gallery[place]
    assert isinstance(item, Image)  # galleries of captions are not drawn
    return item


def has_rankings(trainer: L.Trainer) -> bool:
    """Whether a callback of the trainer ranks."""
    return any(hasattr(callback, "rankings") for callback in _callbacks(trainer))


def rankings_of(trainer: L.Trainer) -> Mapping[str, Ranking]:
    """What the retrieval callback found; nothing on processes that do not rank."""
    rankings: dict[str, Ranking] = {}
    for callback in _callbacks(trainer):
        rankings |= getattr(callback, "rankings", {})
    return rankings


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]
