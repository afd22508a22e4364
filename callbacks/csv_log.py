"""metrics.csv in the run's folder, which is the folder of everything a run leaves behind."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class MetricsTable:
    """A CSV file that grows by rows and columns, and that a resumed run continues.

    Args:
        path: of the file; its folder exists once something is saved.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics: list[dict[str, Any]] = []
        self._written: list[dict[str, Any]] = []
        self._header: list[str] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self._written = list(reader)
                self._header = list(reader.fieldnames or [])

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {name: getattr(value, "item", lambda v=value: v)() for name, value in metrics.items()}
        self.metrics.append({"step": self.rows if step is None else step} | row)

    def save(self) -> None:
        """Append what is new; write the file again where a new column came up."""
        if not self.metrics:
            return
        grown = [name for row in self.metrics for name in row if name not in self._header]
        rows, self.metrics = self.metrics, []
        self._written += rows
        if grown or not self.path.is_file():
            self._header += dict.fromkeys(grown)
            self._rewrite()
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._header).writerows(rows)

    @property
    def rows(self) -> int:
        """Number of rows logged so far."""
        return len(self._written) + len(self.metrics)

    def keep(self, rows: int, before_step: int) -> None:
        """Drop what was logged after a checkpoint.

        Args:
            rows: their number when the checkpoint was written.
            before_step: the checkpoint's step. Lightning logs the training values of the step
                before it only after the checkpoint is written; they stay.
        """
        self.metrics = []
        late = (
            row
            for row in self._written[rows:]
            if int(row["step"]) < before_step and not _has(row, "val/")
        )
        self._written = [*self._written[:rows], *late]
        if self.path.is_file():
            self._rewrite()

    def _rewrite(self) -> None:
        unfinished = self.path.with_suffix(".unfinished")
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._header)
            writer.writeheader()
            writer.writerows(self._written)
        unfinished.replace(self.path)


def _has(row: Mapping[str, Any], prefix: str) -> bool:
    return any(name.startswith(prefix) and value != "" for name, value in row.items())


class CsvLog(CSVLogger):
    """The run's folder `<save_dir>/<name>/version_<k>` and its metrics.csv.

    Args:
        save_dir: folder of all runs.
        name: of the experiment; null: its path below `experiments/`, set by the command line.
    """

    def __init__(self, save_dir: str = "runs", name: str | None = None) -> None:
        # Every row is written at once: a kill must not cost rows that the checkpoint counts.
        super().__init__(save_dir, name=name, flush_logs_every_n_steps=1)
        self._table: MetricsTable | None = None

    @property
    def version(self) -> int | str:
        """The run's number; the first look reserves its folder, so that no two runs share it."""
        if self._version is None:
            self._version = self._reserve()
        return self._version

    @property
    def experiment(self) -> MetricsTable:
        if self._table is None:
            self._table = MetricsTable(Path(self.log_dir) / "metrics.csv")
        return self._table

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: config.yaml holds all of them."""

    @rank_zero_only
    def save(self) -> None:
        self.experiment.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._table is not None:
            self._table.save()

    def continue_folder(self, folder: Path) -> None:
        """Go on in the folder of an earlier run."""
        self._version = int(folder.name.removeprefix("version_"))

    @rank_zero_only
    def discard_if_empty(self) -> None:
        """Remove the folder that was reserved if nothing has been written to it."""
        if self._version is None:
            return
        folder = Path(self.log_dir)
        stop = Path(self.save_dir).parent
        with contextlib.suppress(OSError):
            while folder != stop:
                folder.rmdir()
                folder = folder.parent

    def _reserve(self) -> int:
        # Other processes take the folder that rank 0 tells them.
        while rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            version = self._get_next_version()
            with contextlib.suppress(FileExistsError):
                (Path(self.root_dir) / f"version_{version}").mkdir(parents=True)
                return version
        return self._get_next_version()
