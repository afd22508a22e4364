"""The checkpoint that a subcommand starts from: given, of the run that goes on, or the best."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from cirlab.command.checkpoint_choice import (
    best_checkpoint,
    choose_checkpoint,
    experiments_around,
)
from cirlab.command.configuration import experiment_names
from cirlab.errors import UserError
from cirlab.reporting.run import UNTRAINED, Run, newest_with_last

log = logging.getLogger(__name__)

#: What is done with a checkpoint, by subcommand, where no evaluation is.
DOING = {"export": "exporting", "predict": "predicting with", "chat": "chatting with"}


@dataclass(frozen=True)
class Start:
    """What a subcommand starts from.

    Attributes:
        checkpoint: None for none.
        resumed: the run that goes on; None for a new one.
    """

    checkpoint: Path | None = None
    resumed: Run | None = None


def start_training(experiment: str, root: Path, *, given: str | None, resume: bool) -> Start:
    """What a training starts from.

    Args:
        experiment: its name.
        root: folder of all runs.
        given: path of a checkpoint, from which a new run starts.
        resume: go on with the newest run instead.
    """
    if not resume:
        # What an experiment that is evaluated as it is says in its YAML.
        return Start(Path(given) if given and given != UNTRAINED else None)
    resumed = newest_with_last(experiment, root)
    if resumed is None:
        log.info("no run of %s has a checkpoint yet: starting afresh", experiment)
        return Start()
    log.info("resuming %s", resumed.folder)
    return Start(resumed.last, resumed)


def start_from_trained(
    experiment: str, root: Path, *, given: str | None, subcommand: str, method: str
) -> Start:
    """What an evaluation starts from, or another use of what was trained.

    Args:
        experiment: its name.
        root: folder of all runs.
        given: path of a checkpoint, or `untrained`.
        subcommand: what it is for.
        method: class path of the module.

    Raises:
        UserError: the method learns, and there is no checkpoint.
    """
    if given is not None:
        return Start(None if given == UNTRAINED else Path(given))
    found = choose_checkpoint(experiment, method, root)
    if found is not None:
        log.info("%s %s", DOING.get(subcommand, "evaluating"), found)
    elif _learns(method):
        raise UserError(_no_checkpoint(experiment, root, subcommand))
    return Start(found)


def _no_checkpoint(experiment: str, root: Path, subcommand: str) -> str:
    # What those around it have trained is another method, or it would have been chosen.
    around = [
        name
        for name in experiments_around(experiment)
        if name in experiment_names() and best_checkpoint(name, root) is None
    ]
    train = " or ".join(["it", *around])
    before = f", {UNTRAINED} for what it is before training"
    or_that = before if subcommand != "export" else ""
    return (
        f"experiment {experiment} has no checkpoint below {root} yet; train {train}, or "
        f"give --ckpt_path (make: CKPT=){or_that}"
    )


def _learns(class_path: str) -> bool:
    module, _, name = class_path.rpartition(".")
    return bool(getattr(getattr(import_module(module), name), "train_record", True))
