"""`python -m cirlab.reporting.compare collm collm_finetune`: results of several runs side by side.

Numbers stand in one table only where their whole protocol is known and the same: benchmark, pool,
queries, exclusion, template, tie rule, precision of scores, index, annotations, and the number
of images that could not be read. Others get a table of their own that says what differs. How a
method looks at images is its own affair, and stands below its name. `--by facet` adds the numbers
of each value of a tag.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding

from cirlab.benchmarks.base import NO_VIEWS, Protocol
from cirlab.errors import UserError
from cirlab.reporting.breakdown import show_breakdown
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

#: By benchmark, as in `results.json`.
Results = Mapping[str, Mapping[str, Any]]
#: What is equal between results of one benchmark, and those, by the label of their run.
Table = tuple[dict[str, Any], dict[str, Mapping[str, Any]]]

#: Stands for a part of a protocol that a result does not tell.
UNKNOWN = "unknown"
#: Part of the protocol that the method chooses, so that it splits no tables. What a benchmark
#: itself would have images looked at for belongs to its queries, of which `annotations` is a
#: checksum.
CHOSEN_BY_METHOD = "views"
#: Before the name of a metric that is averaged over the values of a tag.
MACRO_ = "macro_"


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
        found |= {label_of(name, run): run for run in (runs if every else runs[:1])}
    if not found:
        raise UserError(f"there are no results below {root} yet; train with make train EXP=collm")
    return found


def select_results(
    runs: Mapping[str, Run],
    *,
    benchmarks: Sequence[str] = (),
    metrics: Sequence[str] = (),
    tag: str | None = None,
) -> dict[str, Results]:
    """What the runs scored, by the label of the run.

    Args:
        runs: by label.
        benchmarks: those to keep; empty keeps all.
        metrics: those to keep, with their averages over a tag's values; empty keeps all.
        tag: one that results are to be broken down by.

    Raises:
        UserError: no result has one of these; it names those that there are.
    """
    scored = {label: _numbers(run) for label, run in runs.items()}
    _check_there("benchmark", benchmarks, (name for own in scored.values() for name in own))
    kept = {
        label: {name: found for name, found in own.items() if not benchmarks or name in benchmarks}
        for label, own in scored.items()
    }
    results = [found for own in kept.values() for found in own.values()]
    _check_there("tag", [tag] if tag else [], (name for found in results for name in _tags(found)))
    names = (name for found in results for scores in _scores(found) for name in scores)
    _check_there("metric", metrics, names)
    if not metrics:
        return dict(kept)
    wanted = {*metrics, *(MACRO_ + name for name in metrics)}
    return {
        label: {name: _only(found, wanted) for name, found in own.items()}
        for label, own in kept.items()
    }


def tags_of(results: Mapping[str, Results]) -> list[str]:
    """The tags that results are broken down by."""
    return sorted(
        {tag for own in results.values() for found in own.values() for tag in _tags(found)}
    )


def identity(result: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal between two results of a benchmark for their numbers to compare.

    Args:
        result: of one benchmark, as in `results.json`.

    Returns:
        Its protocol without what the method chose, `UNKNOWN` where that says nothing, and the
        number of skipped images: the protocol counts what was ranked, but not which images.
    """
    unknown = {field.name: UNKNOWN for field in fields(Protocol)}
    skipped = {"skipped_images": result.get("skipped_images", 0)}
    whole = unknown | skipped | dict(result.get("protocol", {}))
    del whole[CHOSEN_BY_METHOD]
    return whole


def by_protocol(results: Mapping[str, Results]) -> dict[str, list[Table]]:
    """Results of all runs by benchmark, one table for each different identity."""
    tables: dict[str, list[Table]] = {}
    for label, own in results.items():
        for benchmark, found in own.items():
            same = identity(found)
            groups = tables.setdefault(benchmark, [])
            # Two results that do not tell the same thing need not have done it alike.
            told = UNKNOWN not in same.values()
            beside = next((rows for known, rows in groups if told and known == same), None)
            if beside is None:
                beside = {}
                groups.append((same, beside))
            beside[label] = found
    return tables


def show_comparison(
    results: Mapping[str, Results], console: Console, *, tag: str | None = None
) -> None:
    """Print a table for each benchmark and identity, and beneath it one by the tag."""
    for benchmark, groups in by_protocol(results).items():
        for number, (own, found) in enumerate(groups):
            title = benchmark
            if number:
                changed = ", ".join(_changed(groups[0][0], own))
                title = f"{benchmark}, not comparable with its first table: other {changed}"
            if skipped := own["skipped_images"]:
                title = f"{title} ({skipped} images could not be read)"
            show_table(console, title, own, _rows(found))
            if tag is not None:
                show_breakdown(console, title, tag, found)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cirlab.reporting.compare", description=__doc__)
    parser.add_argument("experiments", nargs="*", help="names; none compares all that ran")
    parser.add_argument("--all", action="store_true", help="every version, not only the newest")
    parser.add_argument("--by", metavar="TAG", help="break down by a tag, such as facet")
    for name in ("benchmark", "metric"):
        parser.add_argument(
            f"--{name}", action="append", default=[], help=f"only this {name}; may be given again"
        )
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of all runs")
    options = parser.parse_args(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        runs = select_runs(options.experiments, options.runs, every=options.all)
        results = select_results(
            runs, benchmarks=options.benchmark, metrics=options.metric, tag=options.by
        )
    except UserError as error:
        log.error("error: %s", error)
        return 2
    show_comparison(results, Console(), tag=options.by)
    return 0


def label_of(experiment: str, run: Run) -> str:
    """The run, and which weights it evaluated if it has trained none."""
    label = f"{experiment} #{run.number}"
    if run.weights in (TRAINED_HERE, TRAINING_FREE):
        return label
    return f"{label} ({_weights(experiment, run.weights)})"


def _weights(experiment: str, weights: str) -> str:
    """Of a checkpoint in a run's folder the run, with its experiment if that is another one."""
    checkpoint = Path(weights)
    if checkpoint.parent.name != "checkpoints":
        return weights
    version = checkpoint.parent.parent
    own = version.parent.parts[-len(Path(experiment).parts) :] == Path(experiment).parts
    run = version.name if own else f"{version.parent.name}/{version.name}"
    return f"{run}/{checkpoint.name}"


def _rows(
    results: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[RenderableType, Mapping[str, float]]]:
    """Runs with how they look at images, if any of them does, and their baselines."""
    views = {
        label: found.get("protocol", {}).get(CHOSEN_BY_METHOD, UNKNOWN)
        for label, found in results.items()
    }
    told = any(looked != NO_VIEWS for looked in views.values())
    for label, result in results.items():
        below = Padding.indent(f"views: {views[label]}", 2)
        yield Group(label, below) if told else label, result["metrics"]
        baselines = result.get("baselines", {})
        known = [key for key in BASELINES if key in baselines]
        yield from ((f"  {key.replace('_', ' ')}", baselines[key]) for key in known)


def _numbers(run: Run) -> Results:
    """Without test splits whose answers are held back, which have none."""
    return {name: found for name, found in (run.results or {}).items() if found["metrics"]}


def _scored(run: Run) -> bool:
    return bool(_numbers(run))


def _tags(result: Mapping[str, Any]) -> Iterable[str]:
    return (tag for tag, values in result.get("breakdown", {}).items() if values)


def _scores(result: Mapping[str, Any]) -> Iterable[Mapping[str, float]]:
    """All mappings of metrics to numbers that a result holds."""
    yield result["metrics"]
    yield from result.get("baselines", {}).values()
    for values in result.get("breakdown", {}).values():
        yield from values.values()


def _only(result: Mapping[str, Any], metrics: Collection[str]) -> dict[str, Any]:
    """A result with some of its metrics."""

    def kept(scores: Mapping[str, float]) -> dict[str, float]:
        return {name: value for name, value in scores.items() if name in metrics}

    def each(groups: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        return {name: kept(scores) for name, scores in groups.items()}

    breakdown = {tag: each(values) for tag, values in result.get("breakdown", {}).items()}
    return {
        **result,
        "metrics": kept(result["metrics"]),
        "baselines": each(result.get("baselines", {})),
        "breakdown": breakdown,
    }


def _check_there(what: str, wanted: Iterable[str], there: Iterable[str]) -> None:
    known = sorted(set(there))
    for name in wanted:
        if name not in known:
            raise UserError(
                f"no result of these runs has the {what} {name!r}; "
                f"there are: {', '.join(known) or 'none'}"
            )


def _changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    differ = (key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    unknown = (key for key, value in other.items() if value == UNKNOWN)
    return sorted({*differ, *unknown})


if __name__ == "__main__":
    raise SystemExit(main())
