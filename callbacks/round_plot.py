"""How dialogues go on, as a picture: cumulative hits and recall by round."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from callbacks.retrieval import RetrievalEvaluation
from cirlab.reporting.rounds import comparisons_of, draw_rounds

FILE = "rounds.png"


class RoundPlot(L.Callback):
    """Draws `<log dir>/rounds.png` after every evaluation of dialogues; the newest one stays.

    A row for each benchmark whose results are broken down by round. The run record brings the
    picture to MLflow, for which it has to stand behind this callback.
    """

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._draw(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._draw(trainer)

    def _draw(self, trainer: L.Trainer) -> None:
        # Every process asks: the trainer broadcasts the answer of the first.
        folder = trainer.log_dir
        if folder is None or not trainer.is_global_zero:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RetrievalEvaluation):
                drawn = comparisons_of({Path(folder).name: callback.results})
                if drawn:
                    draw_rounds(drawn, Path(folder) / FILE)
