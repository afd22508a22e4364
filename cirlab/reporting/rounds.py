"""`python -m cirlab.reporting.rounds chatir clip -o hits.png`: dialogues by round, as a plot.

Cumulative hits beside recall (`cirlab.benchmarks.dialogue`), a line for each run and a row for each
benchmark of dialogues. Numbers of different protocols stand in rows of their own, as in
`cirlab.reporting.compare`. The scale is 0 to 100 percent throughout, so that plots may be laid
beside each other.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from textwrap import fill
from typing import Any

from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file
from cirlab.reporting.compare import Results, by_protocol, select_results, select_runs
from cirlab.reporting.results import ROUND, metric_title
from cirlab.reporting.run import RUNS

log = logging.getLogger(__name__)

#: How the metrics begin that are drawn, in the order of their panels.
DRAWN = ("cumulative_hits_at_", "recall_at_")
#: Width and height of a panel (inches), pixels of an inch, height of a line of the legend (inches).
PANEL, DPI, LEGEND_LINE = (5.2, 3.6), 120, 0.25
#: Told apart by eyes that see few colours (Okabe and Ito, jfly.uni-koeln.de/color), and by markers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
#: Longest line of a title, in characters.
TITLE_WIDTH = 60


@dataclass(frozen=True)
class Comparison:
    """Results that may stand in one row of panels.

    Attributes:
        title: of the row.
        results: of one benchmark, as in `results.json`, by the label of their run.
    """

    title: str
    results: Mapping[str, Mapping[str, Any]]

    @property
    def metrics(self) -> list[str]:
        """What is drawn of it, a panel each."""
        names = {
            name
            for found in self.results.values()
            for scores in by_round(found).values()
            for name in scores
        }
        return [name for start in DRAWN for name in sorted(names) if name.startswith(start)]


def by_round(result: Mapping[str, Any]) -> dict[int, Mapping[str, float]]:
    """A result's metrics by round, rounds ascending; nothing where it is not by dialogue."""
    rounds = result.get("breakdown", {}).get(ROUND, {})
    return {int(number): rounds[number] for number in sorted(rounds, key=int)}


def draw_rounds(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write the plot as PNG, whole or not at all.

    Args:
        comparisons: at least one, each with something to draw.
        path: of the file; its folder is made.
    """
    # Half a second, which every command line would wait for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with whole_file(path) as unfinished:
        FigureCanvasAgg(round_figure(comparisons)).print_png(unfinished)


def round_figure(comparisons: Sequence[Comparison]) -> Any:
    """The plot as matplotlib's Figure: a row of panels for each comparison, a legend below."""
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for each in comparisons for label in each.results))
    styles = {label: _style(number) for number, label in enumerate(labels)}
    columns = max(len(each.metrics) for each in comparisons)
    legend = LEGEND_LINE * len(labels) if len(labels) > 1 else 0.0
    size = (PANEL[0] * columns, PANEL[1] * len(comparisons) + legend)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(len(comparisons), columns, squeeze=False)
    for row, comparison in zip(panels, comparisons, strict=True):
        for panel, metric in zip_longest(row, comparison.metrics):
            if metric is None:
                panel.set_axis_off()
            else:
                _draw_panel(panel, comparison, metric, styles)
    if legend:
        handles = {line.get_label(): line for panel in panels.flat for line in panel.get_lines()}
        shown = [handles[label] for label in labels if label in handles]
        figure.legend(handles=shown, loc="outside lower center", frameon=False)
    return figure


def _draw_panel(panel: Any, comparison: Comparison, metric: str, styles: Mapping[str, Any]) -> None:
    """One metric, a line for each run; `panel` is matplotlib's Axes."""
    for label, found in comparison.results.items():
        told = {at: scores[metric] for at, scores in by_round(found).items() if metric in scores}
        panel.plot(
            list(told), [100 * score for score in told.values()], label=label, **styles[label]
        )
    panel.set_title(fill(comparison.title, TITLE_WIDTH), fontsize="medium")
    panel.set_xlabel("round (0: before the first question)")
    panel.set_ylabel(f"{metric_title(metric)} (%)")
    panel.set_ylim(0, 100)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3)


def _style(number: int) -> dict[str, Any]:
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    dashes = ("-", "--", ":")[number // len(COLOURS) % 3]
    return {"color": colour, "marker": marker, "markersize": 4, "linestyle": dashes}


def comparisons_of(results: Mapping[str, Results]) -> list[Comparison]:
    """What can be drawn of several runs, a row for each benchmark and protocol.

    Args:
        results: as in `results.json`, by the label of their run.
    """
    rows = []
    for benchmark, tables in by_protocol(results).items():
        drawn = [dict(found) for _, found in tables]
        rows += [
            Comparison(benchmark if not number else f"{benchmark}, another protocol", found)
            for number, found in enumerate(drawn)
        ]
    return [row for row in rows if row.metrics]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cirlab.reporting.rounds", description=__doc__)
    parser.add_argument("experiments", nargs="*", help="names; none takes all that ran")
    parser.add_argument("-o", "--output", type=Path, default=Path("rounds.png"), help="the plot")
    parser.add_argument(
        "--all", action="store_true", help="every version, not only the newest by round"
    )
    parser.add_argument(
        "--benchmark", action="append", default=[], help="only this one; may be given again"
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of all runs")
    options = parser.parse_args(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _run(options)
    except UserError as error:
        log.error("error: %s", error)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.output.suffix.lower() != ".png":
        raise UserError(f"the plot {options.output} would be a PNG file; let its name end in .png")
    runs = select_runs(options.experiments, options.runs, every=True)
    results = select_results(runs, benchmarks=options.benchmark)
    told = {label: own for label, own in results.items() if any(map(by_round, own.values()))}
    drawn = comparisons_of(told if options.all else _newest(told))
    if not drawn:
        raise UserError(
            f"no result of {', '.join(options.experiments) or 'all runs'} is by round; evaluate a "
            "benchmark of dialogues, such as that of experiments/overlays/world.yaml"
        )
    draw_rounds(drawn, options.output)
    log.info("%s: %s", options.output, ", ".join(dict.fromkeys(each.title for each in drawn)))


def _newest(results: Mapping[str, Results]) -> dict[str, Results]:
    """Of each experiment the first, by labels as `cirlab.reporting.compare.label_of` makes them."""
    first: dict[str, str] = {}
    for label in results:
        first.setdefault(label.partition(" #")[0], label)
    return {label: results[label] for label in first.values()}


if __name__ == "__main__":
    raise SystemExit(main())
