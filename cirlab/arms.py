"""`python -m cirlab.arms promptable [--ckpt_path FILE] [options]`: every arm of an experiment.

Arms lie in the folder that has the experiment's name: other ways to rank with the same weights,
and baselines beside them. All are evaluated with the best checkpoint of the experiment's newest
run. An arm of another method takes what the command line chooses for it, and one whose YAML has a
`ckpt_path` takes that, such as `untrained`. Then all stand in one table. Further options go to
every evaluation: `-c experiments/overlays/coco_facet.yaml`.
"""

from __future__ import annotations

import argparse
import logging
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cirlab.command.checkpoint_choice import best_checkpoint, method_of
from cirlab.command.configuration import (
    EXPERIMENTS,
    base_files,
    experiment_name,
    experiment_names,
)
from cirlab.command.references import MISSING, look_up, read_config
from cirlab.errors import UserError
from cirlab.reporting.compare import label_of, select_results, show_comparison, tags_of
from cirlab.reporting.run import RUNS, UNTRAINED, Run, newest_with_results

log = logging.getLogger(__name__)


def arms_of(experiment: str, folder: Path = EXPERIMENTS) -> list[Path]:
    """The files of an experiment's arms, numbers in their names in order.

    Args:
        experiment: its name.
        folder: of all experiments.

    Raises:
        UserError: it has none.
    """
    found = _files(folder / experiment)
    if not (folder / f"{experiment}.yaml").is_file() or not found:
        names = (name for name in experiment_names(folder) if _files(folder / name))
        known = ", ".join(names) or "none"
        raise UserError(
            f"experiment {experiment} has no arms, which would lie in "
            f"{_shown(folder / experiment)}; there are those of: {known}"
        )
    return sorted(found, key=lambda file: _in_order(file.stem))


def checkpoint_for(arm: Path, checkpoint: str) -> str | None:
    """What an arm is told to evaluate; None leaves the choice to it.

    Args:
        arm: its file.
        checkpoint: of the experiment, a path or `UNTRAINED`.

    Raises:
        UserError: the arm cannot be read.
    """
    if _setting(arm, "ckpt_path") is not None:
        return None
    if checkpoint == UNTRAINED:
        return checkpoint
    trained = method_of(Path(checkpoint))
    method = str(_setting(arm, "model.class_path"))
    # Class paths may be short in a YAML, and are whole in a checkpoint.
    same = trained is None or trained.rpartition(".")[2] == method.rpartition(".")[2]
    return checkpoint if same else None


def evaluate(arm: Path, checkpoint: str | None, options: Sequence[str], root: Path) -> Run:
    """Evaluate an arm in a process of its own.

    Args:
        arm: its file.
        checkpoint: to be evaluated; None leaves the choice to the arm.
        options: of the command line, further ones.
        root: folder of all runs.

    Raises:
        UserError: it ended with an error, or without results.
    """
    name = experiment_name([arm])
    before = newest_with_results(name, root)
    given = ["--ckpt_path", checkpoint] if checkpoint else []
    status = _cirlab(["validate", "-c", _shown(arm), *given, *options])
    if status:
        raise UserError(f"{name} ended with status {status}, for the reason above")
    made = newest_with_results(name, root)
    if made is None or made == before:
        raise UserError(f"{name} left no results below {root}; leave out what keeps it from that")
    return made


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 2 where an arm could not be evaluated."""
    parser = argparse.ArgumentParser(
        prog="python -m cirlab.arms", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("experiment", help="its name")
    parser.add_argument("--ckpt_path", help="instead of the best of the experiment's newest run")
    parser.add_argument(
        "--by", metavar="TAG", help="break down by it; default: the only tag there is"
    )
    parser.add_argument(
        "--experiments", type=Path, default=EXPERIMENTS, help="folder of all experiments"
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of all runs, the arms' too")
    own, options = parser.parse_known_args(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        arms = arms_of(own.experiment, own.experiments)
        checkpoint = own.ckpt_path or _best(own.experiment, own.runs)
        if checkpoint != UNTRAINED:
            method_of(Path(checkpoint))
    except UserError as error:
        log.error("error: %s", error)
        return 2
    log.info("evaluating the arms of %s with %s", own.experiment, checkpoint)
    runs = _evaluate_all(arms, checkpoint, options, own.runs)
    try:
        _show(runs, own.by)
    except UserError as error:
        log.error("error: %s", error)
        return 2
    return 2 if len(runs) < len(arms) else 0


def _evaluate_all(
    arms: Sequence[Path], checkpoint: str, options: Sequence[str], root: Path
) -> dict[str, Run]:
    """The runs that were made, by label; an arm that is refused keeps no other from it."""
    runs: dict[str, Run] = {}
    failed = []
    for number, arm in enumerate(arms, start=1):
        name = experiment_name([arm])
        log.info("\n%s, arm %d of %d", name, number, len(arms))
        try:
            run = evaluate(arm, checkpoint_for(arm, checkpoint), options, root)
        except UserError as error:
            log.error("error: %s", error)
            failed.append(name)
        else:
            runs[label_of(name, run)] = run
    if failed:
        log.error(
            "error: %d of %d arms have no results: %s; what is wrong with each stands above",
            len(failed),
            len(arms),
            ", ".join(failed),
        )
    return runs


def _cirlab(args: Sequence[str]) -> int:
    """The status of a command line of this repository, run in a process of its own."""
    return subprocess.run([sys.executable, "-m", "cirlab", *args], check=False).returncode


def _show(runs: Mapping[str, Run], tag: str | None) -> None:
    """The comparison, by the only tag that there is if none is given.

    Raises:
        UserError: no result has the tag.
    """
    results = select_results(runs)
    tags = tags_of(results)
    shown = tag if tag in tags else None
    if tag is None and len(tags) == 1:
        shown = tags[0]
    show_comparison(results, Console(), tag=shown)
    if results and tag is not None:
        select_results(runs, tag=tag)


def _best(experiment: str, root: Path) -> str:
    found = best_checkpoint(experiment, root)
    if found is None:
        raise UserError(
            f"experiment {experiment} has no checkpoint below {root} yet; train it, or give "
            f"--ckpt_path (make: CKPT=), {UNTRAINED} for its arms before training"
        )
    return str(found)


def _setting(arm: Path, key: str) -> Any:
    """What the files of an arm say of a setting, the last that does; None if none does."""
    files = [*base_files(arm), arm]
    found = [look_up(read_config(file).resolved, key) for file in files]
    return next((value for value in reversed(found) if value is not MISSING), None)


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.yaml") if not file.name.startswith("_")]


def _in_order(name: str) -> list[tuple[int, str]]:
    """Sorts `linear_20` before `linear_100`."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _shown(file: Path) -> str:
    """As one would type it, which the run's record keeps."""
    here = Path.cwd()
    return str(file.relative_to(here) if here in file.parents else file)


if __name__ == "__main__":
    raise SystemExit(main())
