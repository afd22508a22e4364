"""Which checkpoint an evaluation takes where none is given."""

from __future__ import annotations

from pathlib import Path

from cirlab.command.checkpoint_config import CONFIG, read_metadata
from cirlab.reporting.run import RUNS, runs_of


def best_checkpoint(experiment: str, root: Path = RUNS) -> Path | None:
    """The best one of the newest run that has any, None without such a run."""
    return next((run.best for run in runs_of(experiment, root) if run.best.exists()), None)


def choose_checkpoint(experiment: str, method: str, root: Path = RUNS) -> Path | None:
    """An experiment's own best checkpoint, or else that of an experiment whose arm it is.

    Args:
        experiment: its name. `promptable/general`, in the folder of `promptable`, is an arm of it.
        method: class path of the experiment's module; an arm of another method has other weights.
        root: folder of all runs.

    Raises:
        UserError: the checkpoint of the experiment around it cannot be read.
    """
    if (own := best_checkpoint(experiment, root)) is not None:
        return own
    for around in experiments_around(experiment):
        found = best_checkpoint(around, root)
        if found is not None and method_of(found) == method:
            return found
    return None


def experiments_around(experiment: str) -> list[str]:
    """The names that the folders of an experiment make, the innermost first."""
    return [folder.as_posix() for folder in Path(experiment).parents if folder.name]


def method_of(checkpoint: Path) -> str | None:
    """Class path of the method that a checkpoint was trained as; None where it does not say.

    Raises:
        UserError: it is no checkpoint.
    """
    config = read_metadata(checkpoint).get(CONFIG)
    return None if config is None else str(config["model"]["class_path"])
