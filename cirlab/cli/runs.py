"""What runs are called and where they lie, as the loggers of a configuration have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cirlab.reporting.run import RUNS


def name_runs(config: Any, experiment: str) -> str:
    """Call runs by their experiment where the logger has no name of its own.

    Args:
        config: of a subcommand; names are filled in.
        experiment: its name.

    Returns:
        What runs are called.
    """
    for entry in _loggers(config):
        for key in ("name", "experiment_name"):
            if key in entry.init_args and entry.init_args[key] is None:
                entry.init_args[key] = experiment
            elif key == "name" and entry.init_args.get(key):
                experiment = entry.init_args[key]
    return experiment


def runs_root(config: Any) -> Path:
    """The folder of all runs."""
    folders = (e.init_args.save_dir for e in _loggers(config) if "save_dir" in e.init_args)
    return Path(next(folders, RUNS))


def _loggers(config: Any) -> list[Any]:
    loggers = config.trainer.logger
    return [entry for entry in loggers if "init_args" in entry] if isinstance(loggers, list) else []
