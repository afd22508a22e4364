"""Results by the values of a tag: values as rows, runs as columns, a block for each metric."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cirlab.reporting.results import metric_text, metric_title

#: Rows below the values of a tag: the mean over the values, and that over the queries.
MACRO, ALL = "macro", "all"
#: Characters that a table has left of each column, and around all.
GAP, EDGES = 1, 2


@dataclass(frozen=True)
class Column:
    """What is told of one run."""

    heading: str
    cells: list[str]

    @property
    def width(self) -> int:
        return GAP + max(map(len, [*self.heading.split("\n"), *self.cells]))


def show_breakdown(
    console: Console, title: str, tag: str, results: Mapping[str, Mapping[str, Any]]
) -> None:
    """Print runs beside each other, in further tables where the console is too narrow for all.

    Nothing is printed of a benchmark that is not broken down by the tag.

    Args:
        console: where to.
        title: of the tables.
        tag: whose values are the rows.
        results: of one benchmark, as in `results.json`, by the label of their run.
    """
    found = [result.get("breakdown", {}).get(tag, {}) for result in results.values()]
    values = list(dict.fromkeys(value for own in found for value in own))
    if not values:
        return
    metrics = dict.fromkeys(name for own in found for scores in own.values() for name in scores)
    rows = [row for name in metrics for row in _row_labels(name, values)]
    columns = [
        Column(heading, [text for name in metrics for text in _cells(result, tag, name, values)])
        for heading, result in zip(headings(list(results)), results.values(), strict=True)
    ]
    console.print(f"\n{title} by {tag}", style="bold", soft_wrap=True, highlight=False)
    for part in _tables(columns, console.width - max(map(len, rows)) - EDGES):
        console.print(_table(rows, part))


def headings(labels: Sequence[str]) -> list[str]:
    """What is told of runs above their columns: as little as they still differ by.

    Args:
        labels: all different, such as `promptable/linear_100 #2 (promptable/version_0/best.ckpt)`.

    Returns:
        For each its words, one beneath the other: `linear`, `100`.
    """
    experiments = [label.partition(" #")[0] for label in labels]
    names = [experiment.rpartition("/")[2] for experiment in experiments]
    runs = [label.partition(" (")[0] for label in labels]
    shorter = (names, experiments, runs, list(labels))
    short = next(found for found in shorter if len(set(found)) == len(labels))
    return ["\n".join(re.findall(r"[^\s/_]+", name)) for name in short]


def _row_labels(metric: str, values: Sequence[str]) -> list[str]:
    return [metric_title(metric), *(f"  {row}" for row in (*values, MACRO, ALL))]


def _cells(result: Mapping[str, Any], tag: str, metric: str, values: Sequence[str]) -> list[str]:
    """One run's numbers of one metric, beneath the blank beside its name."""
    own = result.get("breakdown", {}).get(tag, {})
    scores = [own.get(value, {}).get(metric) for value in values]
    known = [score for score in scores if score is not None]
    macro = fmean(known) if len(known) == len(values) else None
    every = [*scores, macro, result["metrics"].get(metric)]
    return ["", *("-" if score is None else metric_text(metric, score) for score in every)]


def _tables(columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """Columns in groups that are no wider than `width` characters, one column at least."""
    group: list[Column] = []
    for column in columns:
        if group and sum(other.width for other in [*group, column]) > width:
            yield group
            group = []
        group.append(column)
    yield group


def _table(rows: Sequence[str], columns: Sequence[Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", vertical="bottom", no_wrap=True)
    for cells in zip(rows, *(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table
