"""`python -m cirlab.reporting.compare collm collm_finetune`: results of several runs side by side.

Numbers stand in one table only where their whole protocol is known and the same: benchmark, pool,
queries, exclusion, template, tie rule, precision of scores, index, annotations, and the number
of images that could not be read. Others get a table of their own that says what differs.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Console

from cirlab.benchmarks.base import Protocol
from cirlab.errors import UserError
from cirlab.reporting.results import BASELINES, show_table
from cirlab.reporting.run import (
    RUNS,
    TRAINED_HERE,
    TRAINING_FREE,
    UNTRAINED,
    Run,
    experiments_that_ran,
    runs_of,
)

log = logging.getLogger(__name__)

Rows = list[tuple[str, Mapping[str, float]]]

#: Stands for a part of a protocol that a result does not tell.
UNKNOWN = "unknown"


def select_runs(experiments: Sequence[str], root: Path, *, every: bool) -> dict[str, Run]:
    """The evaluated runs to compare, by the name they are shown under.

    Args:
        experiments: their names; none takes all that ran.
        root: folder of all runs.
        every: all versions of each experiment instead of the newest.

    Raises:
        UserError: an experiment has no results.
    """
    there = experiments_that_ran(root)
    found: dict[str, Run] = {}
    for name in experiments or there:
        runs = [run for run in runs_of(name, root) if _scored(run)]
        if not runs and name in experiments:
            close = get_close_matches(name, [other for other in there if other != name], n=1)
            known = ", ".join(there) or "none"
            hint = f"did you mean {close[0]}?" if close else f"there are: {known}"
            raise UserError(f"experiment {name} has no results below {root}; {hint}")
        # The newest, but what no training has touched only where there is nothing else.
        runs.sort(key=lambda run: run.weights == UNTRAINED)
        found |= {_label(name, run): run for run in (runs if every else runs[:1])}
    if not found:
        raise UserError(f"there are no results below {root} yet; train with make train EXP=collm")
    return found


def identity(result: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal between two results of a benchmark for their numbers to compare.

    Args:
        result: of one benchmark, as in `results.json`.

    Returns:
        Its protocol, `UNKNOWN` where that says nothing, and the number of skipped images: the
        protocol counts what was ranked, but not which images.
    """
    unknown = {field.name: UNKNOWN for field in fields(Protocol)}
    skipped = {"skipped_images": result.get("skipped_images", 0)}
    return unknown | skipped | dict(result.get("protocol", {}))


def by_protocol(runs: Mapping[str, Run]) -> dict[str, list[tuple[dict[str, Any], Rows]]]:
    """Rows of all runs by benchmark, one list for each different identity."""
    tables: dict[str, list[tuple[dict[str, Any], Rows]]] = {}
    for name, run in runs.items():
        for benchmark, found in (run.results or {}).items():
            if not found["metrics"]:
                continue
            own = identity(found)
            groups = tables.setdefault(benchmark, [])
            # Two results that do not tell the same thing need not have done it alike.
            told = UNKNOWN not in own.values()
            rows = next((rows for known, rows in groups if told and known == own), None)
            if rows is None:
                rows = []
                groups.append((own, rows))
            rows.append((name, found["metrics"]))
            baselines = found.get("baselines", {})
            known = [key for key in BASELINES if key in baselines]
            rows += [(f"  {key.replace('_', ' ')}", baselines[key]) for key in known]
    return tables


def show_comparison(runs: Mapping[str, Run], console: Console) -> None:
    """Print a table for each benchmark and identity."""
    for benchmark, groups in by_protocol(runs).items():
        for number, (own, rows) in enumerate(groups):
            title = benchmark
            if number:
                changed = ", ".join(_changed(groups[0][0], own))
                title = f"{benchmark}, not comparable with its first table: other {changed}"
            if skipped := own["skipped_images"]:
                title = f"{title} ({skipped} images could not be read)"
            show_table(console, title, own, rows)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cirlab.reporting.compare", description=__doc__)
    parser.add_argument("experiments", nargs="*", help="names; none compares all that ran")
    parser.add_argument("--all", action="store_true", help="every version, not only the newest")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of all runs")
    options = parser.parse_args(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        runs = select_runs(options.experiments, options.runs, every=options.all)
    except UserError as error:
        log.error("error: %s", error)
        return 2
    show_comparison(runs, Console())
    return 0


def _label(experiment: str, run: Run) -> str:
    """The run, and which weights it evaluated if it has trained none."""
    label = f"{experiment} #{run.number}"
    if run.weights in (TRAINED_HERE, TRAINING_FREE):
        return label
    if run.weights == UNTRAINED:
        return f"{label} ({UNTRAINED})"
    checkpoint = Path(run.weights)
    return f"{label} ({checkpoint.parent.parent.name}/{checkpoint.name})"


def _scored(run: Run) -> bool:
    """Whether a run has numbers; a test split whose answers are held back gives none."""
    return any(found["metrics"] for found in (run.results or {}).values())


def _changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    differ = (key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    unknown = (key for key, value in other.items() if value == UNKNOWN)
    return sorted({*differ, *unknown})


if __name__ == "__main__":
    raise SystemExit(main())
