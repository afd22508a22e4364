"""What a run leaves on disk: `runs/<experiment>/version_<k>/`.

config.yaml, metrics.csv, checkpoints/last.ckpt and best.ckpt, results.json, run.json,
contact_sheets/, rounds.png.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirlab.reading.atomic import whole_file

#: Default folder of all runs.
RUNS = Path("runs")
#: Where a run's weights come from, if from no checkpoint.
TRAINED_HERE, UNTRAINED, TRAINING_FREE = "trained here", "untrained", "training-free"


@dataclass(frozen=True)
class Run:
    """One version of one experiment."""

    folder: Path

    @property
    def number(self) -> int:
        return int(self.folder.name.removeprefix("version_"))

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint to evaluate: the best one where the run monitors a metric."""
        best = self.folder / "checkpoints" / "best.ckpt"
        return best if best.exists() else self.last

    @property
    def results(self) -> dict[str, Any] | None:
        """What `results.json` says, None before the first evaluation."""
        return _read(self.folder / "results.json")

    @property
    def weights(self) -> str:
        """Which weights were evaluated: `TRAINED_HERE`, the path of a checkpoint, `UNTRAINED`."""
        return str(self.record.get("weights", TRAINED_HERE))

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` says: code, machine, sizes, times."""
        return _read(self.folder / "run.json") or {}


def runs_of(experiment: str, root: Path = RUNS) -> list[Run]:
    """All runs of an experiment, the newest first."""
    folders = (root / experiment).glob("version_*")
    runs = [Run(folder) for folder in folders if re.fullmatch(r"version_\d+", folder.name)]
    return sorted(runs, key=lambda run: run.number, reverse=True)


def experiments_that_ran(root: Path = RUNS) -> list[str]:
    """Names of all experiments with at least one result."""
    found = {path.parent.parent for path in root.rglob("version_*/results.json")}
    return sorted(folder.relative_to(root).as_posix() for folder in found)


def newest_with_last(experiment: str, root: Path = RUNS) -> Run | None:
    """The newest run that can be resumed."""
    return next((run for run in runs_of(experiment, root) if run.last.exists()), None)


def newest_with_results(experiment: str, root: Path = RUNS) -> Run | None:
    """The newest run that has been evaluated."""
    return next((run for run in runs_of(experiment, root) if run.results is not None), None)


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file as a whole, so that no reader and no kill finds half of it."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
