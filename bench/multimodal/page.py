"""The table of `bench.gpu`, between two marks of docs/benchmarks.md."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from bench.multimodal.architectures import Architecture
from bench.multimodal.operations import step as operations
from bench.multimodal.step import Measured, Variant
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
GIB = 1024


@dataclass(frozen=True)
class Entry:
    """One row: what was trained, and what came of it; None: memory did not suffice."""

    architecture: Architecture
    weights: str
    variant: Variant
    batch: int
    measured: Measured | None


@dataclass(frozen=True)
class Card:
    """What it was measured on.

    Attributes:
        name: of the device.
        memory_gib: all of it.
        peak: operations a second of a large bfloat16 product, measured in the same run.
    """

    name: str
    memory_gib: float
    peak: float


def section(entries: Sequence[Entry], card: Card, rank: int) -> str:
    """The measurements of one run as Markdown."""
    today = datetime.date.today().isoformat()
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft"))
    lines = [
        f"Measured on {today}: {card.name}, {card.memory_gib:.0f} GiB, torch {torch.__version__}, "
        f"{versions}, bitsandbytes {version('bitsandbytes')}. Measured bfloat16 peak: "
        f"{card.peak / 1e12:.0f} TFLOP/s.",
        "",
        "| model | base weights | kept for the backward pass | batch | tokens/s | images/s | "
        "s a step | peak GiB | of the peak |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
        *(_row(entry, card, rank) for entry in entries),
    ]
    return "\n".join(lines)


def _row(entry: Entry, card: Card, rank: int) -> str:
    model = entry.architecture
    cells = [model.name, entry.weights, entry.variant.name, str(entry.batch)]
    if entry.measured is None:
        cells += ["out of memory", "-", "-", "-", "-"]
    else:
        seconds = entry.measured.seconds
        rate = entry.batch / seconds
        share = operations(model, rank) * rate / card.peak
        cells += [
            f"{sum(model.sides) * rate:,.0f}",
            f"{rate:,.1f}",
            f"{seconds:.3g}",
            f"{entry.measured.peak_mib / GIB:.1f}",
            f"{100 * share:.0f}%",
        ]
    return f"| {' | '.join(cells)} |"


def write_section(page: Path, text: str) -> None:
    """Replace what stands between the page's marks.

    Raises:
        UserError: the page lacks them.
    """
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{page} has no lines {BEGIN} and {END}; write them where the table goes")
    with whole_file(page) as unfinished:
        unfinished.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
