"""`python -m bench [names]`: run measurements and print one table."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import statistics
import sys
from collections.abc import Iterator, Sequence

import rich.console
import rich.table

import bench
from bench.measure import Row


def names() -> list[str]:
    """Modules of this package that measure something."""
    found = (module.name for module in pkgutil.iter_modules(bench.__path__))
    return [name for name in found if name not in ("__main__", "measure")]


def table(rows: Sequence[Row]) -> rich.table.Table:
    """Medians, their ratio, and how far the ratio spread over the repeats."""
    drawn = rich.table.Table(title="ratio: how many times better ours is")
    for heading in ("measured", "reference"):
        drawn.add_column(heading)
    for heading in ("ours", "theirs", "unit", "ratio", "spread", "repeats"):
        drawn.add_column(heading, justify="right")
    for row in rows:
        drawn.add_row(
            row.name,
            row.reference_name,
            f"{statistics.median(row.ours):,.4g}",
            f"{statistics.median(row.reference):,.4g}",
            row.unit,
            f"{row.ratio:.2f}x",
            f"{min(row.ratios):.2f} to {max(row.ratios):.2f}",
            str(len(row.ratios)),
        )
    return drawn


def run(wanted: Sequence[str], console: rich.console.Console) -> Iterator[Row]:
    """The rows of the named modules, telling which one is at work."""
    for name in wanted:
        with console.status(f"measuring {name}"):
            yield from importlib.import_module(f"bench.{name}").run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=bench.__doc__)
    parser.add_argument("names", nargs="*", help=f"any of: {', '.join(names())}; default: all")
    wanted = parser.parse_args(arguments).names or names()
    unknown = [name for name in wanted if name not in names()]
    if unknown:
        parser.error(f"there is no measurement {unknown[0]!r}; choose from {', '.join(names())}")
    console = rich.console.Console()
    console.print(table(list(run(wanted, console))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
