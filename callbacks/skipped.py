"""Tell which images a run left out, and how many."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from cirlab.distributed import all_gather_object

log = logging.getLogger(__name__)

NAMED = 10


class SkippedImages(L.Callback):
    """Collects `batch["skipped"]` of every process.

    After training and after each evaluation the number of different images and the first ten
    names are logged as a warning; all names, with how often each was met, go to
    `<log_dir>/skipped.txt` if there is a logger. A resumed run goes on counting.
    """

    def __init__(self) -> None:
        self.met: Counter[str] = Counter()
        self._told = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self._count(batch)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: int
    ) -> None:
        if not trainer.sanity_checking:
            self._count(batch)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: int
    ) -> None:
        self._count(batch)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._tell(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._tell(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._tell(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"met": dict(self.met)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.met = Counter(state_dict["met"])

    def _count(self, batch: Any) -> None:
        if isinstance(batch, Mapping):
            self.met.update(batch.get("skipped", ()))

    def _tell(self, trainer: L.Trainer) -> None:
        # Both are collective, so every process takes part before any of them turns back.
        counts = sum(all_gather_object(self.met), Counter[str]())
        folder = trainer.log_dir if trainer.loggers else None
        if not trainer.is_global_zero or len(counts) == self._told:
            return
        self._told = len(counts)
        first = ", ".join(sorted(counts)[:NAMED])
        more = f" and {len(counts) - NAMED} more" if len(counts) > NAMED else ""
        log.warning("%d broken or missing images were left out: %s%s", len(counts), first, more)
        if folder is not None:
            path = Path(folder)
            path.mkdir(parents=True, exist_ok=True)
            lines = [f"{name}\t{times}\n" for name, times in sorted(counts.items())]
            (path / "skipped.txt").write_text("".join(lines), encoding="utf-8")
