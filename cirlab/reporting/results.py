"""Results as one reads them: one table for each benchmark, its protocol beneath."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

from cirlab.benchmarks.base import NO_VIEWS
from cirlab.reporting.run import Run

#: The breakdown that tells how a dialogue goes on.
ROUND = "round"
#: Rows of a result beside the method, in the order they are shown.
BASELINES = ("image_only", "text_only", "sum")


def metric_title(name: str) -> str:
    """`subset_recall_at_1` as `subset recall @1`; `map_at_5` as `mAP @5`."""
    return name.replace("_at_", " @").replace("map @", "mAP @").replace("_", " ")


def metric_text(name: str, value: float) -> str:
    """Ranks and log ranks as they are, everything else, being a fraction, in percent."""
    if name == "bri":
        return f"{value:.4f}"
    return f"{value:.1f}" if name.endswith("rank") else f"{100 * value:.2f}"


def protocol_line(protocol: Mapping[str, Any]) -> str:
    """What makes the numbers comparable, in one line."""
    several = protocol.get("wordings", 1)
    asked = f" in {several} wordings" if several != 1 else ""
    depth = protocol.get("rerank_depth", 0)
    looked = protocol.get("views", NO_VIEWS)
    views = f"views: {looked}, " if looked != NO_VIEWS else ""
    second = f"best {depth} ranked again by a second stage, " if depth else ""
    return (
        f"{protocol['queries']} queries{asked}, gallery of {protocol['pool_size']}, ranked "
        f"against: {protocol.get('candidates', 'unknown')}, "
        f"excluded: {protocol['exclusion']}, ties {protocol['tie_rule']}, "
        f"{views}{second}query read as {protocol['query_template']!r}, {protocol['index']} index, "
        f"annotations {protocol['annotations']}; all but ranks and bri in percent"
    )


def show_table(
    console: Console,
    title: str,
    protocol: Mapping[str, Any] | None,
    rows: Iterable[tuple[RenderableType, Mapping[str, float]]],
) -> None:
    """Print named rows of metrics, with the protocol they share beneath, if it is given."""
    rows = list(rows)
    names = list(dict.fromkeys(name for _, metrics in rows for name in metrics))
    # Narrow enough for nine metrics on a terminal of 80 columns.
    table = Table(box=SIMPLE_HEAD, padding=0)
    table.add_column("", overflow="fold")
    headers = [metric_title(name).replace(" ", "\n") for name in names]
    lines = max(header.count("\n") for header in headers)
    for header in headers:
        # Down to the rule, while numbers stand beside the first line of a label.
        lowered = "\n" * (lines - header.count("\n")) + header
        table.add_column(lowered, justify="right", no_wrap=True)
    for label, metrics in rows:
        cells = (metric_text(n, metrics[n]) if n in metrics else "-" for n in names)
        table.add_row(label, *cells)
    console.print(f"\n{title}", style="bold", soft_wrap=True, highlight=False)
    console.print(table)
    if protocol is not None:
        console.print(protocol_line(protocol), soft_wrap=True, highlight=False)


def show_counts(console: Console, title: str, rows: Mapping[str, Mapping[str, int]]) -> None:
    """Print whole numbers by round."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(ROUND, justify="right")
    for name in dict.fromkeys(name for counts in rows.values() for name in counts):
        table.add_column(name, justify="right", no_wrap=True)
    for value, counts in rows.items():
        table.add_row(value, *(f"{count:,}" for count in counts.values()))
    console.print(f"\n{title}", style="bold", soft_wrap=True, highlight=False)
    console.print(table)


def show_run(run: Run, console: Console) -> None:
    """Print a table for each benchmark of a run, dialogues by round, and where everything lies."""
    record = run.record
    for benchmark, found in (run.results or {}).items():
        if not found["metrics"]:
            console.print(f"\n{benchmark}", style="bold", soft_wrap=True, highlight=False)
            console.print("ranked, not scored: its answers are held back")
            continue
        baselines = found.get("baselines", {})
        known = [name for name in BASELINES if name in baselines]
        rows = [(record.get("method", "method"), found["metrics"])]
        rows += [(name.replace("_", " "), baselines[name]) for name in known]
        show_table(console, benchmark, found["protocol"], rows)
        if rounds := found.get("breakdown", {}).get(ROUND, {}):
            by_round = [(f"{ROUND} {number}", metrics) for number, metrics in rounds.items()]
            show_table(console, f"{benchmark} by {ROUND}", None, by_round)
        for part, counts in found.get("wins", {}).items():
            if rounds := counts["breakdown"].get(ROUND, {}):
                title = f"{benchmark}: queries that rank better or worse than {part} by {ROUND}"
                show_counts(console, title.replace("_", " "), rounds)
    console.print(f"\neverything of this run: {run.folder}", soft_wrap=True, highlight=False)
    console.print("beside other runs: make compare, or make dashboard")
