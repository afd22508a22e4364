"""Dialogues one can look at: a picture of each, round by round."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L

from callbacks.contact_sheet import FOLDER, choose, has_rankings, image_at, rankings_of
from cirlab.benchmarks.base import Benchmark
from cirlab.benchmarks.dialogue import ROUND
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file
from cirlab.reporting import sheet
from cirlab.retrieval.evaluation import Ranking


class DialogueSheet(L.Callback):
    """Draws `<log dir>/contact_sheets/<benchmark>/<dialogue>.png` after an evaluation of dialogues.

    A row shows a round: the picture that the method has drawn of it, if it draws any, the text that
    it searched with, the target, and the best images with the targets among them framed. Half of
    the dialogues have found their target after the last round, as far as there are enough of both.

    Args:
        dialogues: drawn of each benchmark.
        found: images of a row.
        seed: of the order in which dialogues are looked through.
    """

    def __init__(self, dialogues: int = 6, found: int = 5, seed: int = 0) -> None:
        if dialogues < 1 or found < 1:
            raise UserError(
                f"DialogueSheet draws {dialogues} dialogues with {found} images a row; set both to "
                "1 or more"
            )
        self.dialogues, self.found, self.seed = dialogues, found, seed

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not has_rankings(trainer):
            raise UserError(
                "DialogueSheet draws rankings, but no callback makes any; add "
                "callbacks.retrieval.RetrievalEvaluation or remove DialogueSheet"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._draw_all(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._draw_all(trainer, pl_module)

    def _draw_all(self, trainer: L.Trainer, module: Any) -> None:
        # Every process asks: the trainer broadcasts the answer of the first.
        folder = Path(trainer.log_dir or trainer.default_root_dir) / FOLDER
        benchmarks = {b.name: b for b in trainer.datamodule.benchmarks}  # type: ignore[attr-defined]
        for name, ranking in rankings_of(trainer).items():
            if benchmarks[name].kind == "dialogue":
                for dialogue, rows in self._chosen(benchmarks[name], ranking).items():
                    path = folder / _file_name(name) / f"{_file_name(dialogue)}.png"
                    self._draw(module, benchmarks[name], ranking, rows, path)

    def _chosen(self, benchmark: Benchmark, ranking: Ranking) -> dict[str, list[int]]:
        """Rows of a ranking by dialogue, in the order of rounds."""
        rounds: dict[str, dict[int, int]] = {}
        for row, place in enumerate(ranking.queries):
            query = benchmark.queries[place]
            dialogue = query.id.rpartition("#")[0]
            rounds.setdefault(dialogue, {})[int(query.tags[ROUND])] = row
        by_dialogue = {name: [rows[n] for n in sorted(rows)] for name, rows in rounds.items()}
        last = {rows[-1]: name for name, rows in by_dialogue.items()}
        chosen = choose(ranking, self.dialogues, self.seed, list(last), self.found)
        return {last[row]: by_dialogue[last[row]] for row in chosen}

    def _draw(
        self, module: Any, benchmark: Benchmark, ranking: Ranking, rows: list[int], path: Path
    ) -> None:
        queries = [benchmark.queries[ranking.queries[row]] for row in rows]
        drawn = []
        for row, query in zip(rows, module.as_asked(queries), strict=True):
            places = [p for p in ranking.images[row, : self.found].tolist() if p >= 0]
            found = [image_at(benchmark, place) for place in places]
            target = int(ranking.targets[row])
            drawn.append(
                sheet.Row(
                    image=query.image.load() if query.image else None,
                    text=f"{query.tags[ROUND]}: {query.text}",
                    target=image_at(benchmark, target).load() if target >= 0 else None,
                    found=[image.load() for image in found],
                    correct=[image.id in query.targets for image in found],
                    rank=int(ranking.ranks[row]),
                )
            )
        title = f"{benchmark.name}: {queries[0].id.rpartition('#')[0]}, round by round"
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as unfinished:
            sheet.draw(drawn, title).save(unfinished, format="PNG")


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name)
