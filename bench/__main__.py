"""`python -m bench [names]`: run measurements and print one table."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import statistics
import sys
from collections.abc import Iterator, Sequence

import rich.box
import rich.console
import rich.table

import bench
from bench.measure import Row
from cirlab.errors import UserError

#: What runs only when it is named: it needs what few machines have.
ON_REQUEST = ("gpu",)


def names() -> list[str]:
    """Modules of this package that measure something; packages hold their parts."""
    found = (module.name for module in pkgutil.iter_modules(bench.__path__) if not module.ispkg)
    return [name for name in found if name not in ("__main__", "measure")]


def table(rows: Sequence[Row]) -> rich.table.Table:
    """Medians, their ratio, and how far the ratio spread over the repeats."""
    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("measured", "reference"):
        drawn.add_column(heading)
    for heading in ("ours", "theirs", "unit", "ratio", "from, to", "runs"):
        # Numbers that do not fit are no numbers: the texts give way.
        drawn.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        drawn.add_row(
            row.name,
            row.reference_name,
            number(statistics.median(row.ours)),
            number(statistics.median(row.reference)),
            row.unit,
            f"{number(row.ratio)}x",
            f"{number(min(row.ratios))}, {number(max(row.ratios))}",
            str(len(row.ratios)),
        )
    return drawn


def number(value: float) -> str:
    """Three or more digits, never an exponent: 0.365, 5.92, 106, 17,330."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def run(wanted: Sequence[str], console: rich.console.Console) -> Iterator[Row]:
    """The rows of the named modules, telling which one is at work."""
    for name in wanted:
        with console.status(f"measuring {name}"):
            yield from importlib.import_module(f"bench.{name}").run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=bench.__doc__)
    usual = [name for name in names() if name not in ON_REQUEST]
    parser.add_argument(
        "names", nargs="*", help=f"any of: {', '.join(names())}; default: {', '.join(usual)}"
    )
    wanted = parser.parse_args(arguments).names or usual
    unknown = [name for name in wanted if name not in names()]
    if unknown:
        parser.error(f"there is no measurement {unknown[0]!r}; choose from {', '.join(names())}")
    console = rich.console.Console()
    try:
        rows = list(run(wanted, console))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if rows:
        console.print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
