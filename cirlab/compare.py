"""`python -m cirlab.compare collm collm_finetune`: results of several runs side by side.

Numbers stand in one table only where their protocol is the same, annotations included; runs
evaluated under another protocol get a table of their own that says what differs.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Console

from cirlab.errors import UserError
from cirlab.results import BASELINES, show_table
from cirlab.runs import RUNS, Run, experiments_that_ran, newest_with_results, runs_of

log = logging.getLogger(__name__)

Rows = list[tuple[str, Mapping[str, float]]]


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
        newest = newest_with_results(name, root)
        if newest is None:
            close = get_close_matches(name, there, n=1)
            known = ", ".join(there) or "none"
            hint = f"did you mean {close[0]}?" if close else f"there are: {known}"
            raise UserError(f"experiment {name} has no results below {root}; {hint}")
        runs = [run for run in runs_of(name, root) if run.results] if every else [newest]
        found |= {f"{name} #{run.number}": run for run in runs}
    if not found:
        raise UserError(f"there are no results below {root} yet; train with make train EXP=collm")
    return found


def by_protocol(runs: Mapping[str, Run]) -> dict[str, list[tuple[dict[str, Any], Rows]]]:
    """Rows of all runs by benchmark, one list for each different protocol."""
    tables: dict[str, list[tuple[dict[str, Any], Rows]]] = {}
    for name, run in runs.items():
        for benchmark, found in (run.results or {}).items():
            protocols = tables.setdefault(benchmark, [])
            rows = next((rows for known, rows in protocols if known == found["protocol"]), None)
            if rows is None:
                rows = []
                protocols.append((found["protocol"], rows))
            rows.append((name, found["metrics"]))
            baselines = found.get("baselines", {})
            known = [key for key in BASELINES if key in baselines]
            rows += [(f"  {key.replace('_', ' ')}", baselines[key]) for key in known]
    return tables


def show_comparison(runs: Mapping[str, Run], console: Console) -> None:
    """Print a table for each benchmark and protocol."""
    for benchmark, protocols in by_protocol(runs).items():
        for number, (protocol, rows) in enumerate(protocols):
            title = benchmark
            if number:
                changed = ", ".join(_changed(protocols[0][0], protocol))
                title = f"{benchmark}, not comparable with the table above: other {changed}"
            show_table(console, title, protocol, rows)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cirlab.compare", description=__doc__)
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


def _changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))


if __name__ == "__main__":
    raise SystemExit(main())
