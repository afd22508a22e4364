"""What measurements share: the row of the table, timing, a process of one's own."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """Ours against a reference, measured in turns.

    Attributes:
        name: what was measured, with its size.
        ours: one value per repeat.
        reference: one value per repeat.
        unit: of both.
        reference_name: what the reference is.
        less_is_better: whether the unit is a cost (seconds, MiB) or a yield (scenes/s).
    """

    name: str
    ours: Sequence[float]
    reference: Sequence[float]
    unit: str
    reference_name: str
    less_is_better: bool = True

    @property
    def ratios(self) -> list[float]:
        """How many times better ours is, for each repeat."""
        pairs = zip(self.ours, self.reference, strict=True)
        if self.less_is_better:
            return [reference / ours for ours, reference in pairs]
        return [ours / reference for ours, reference in pairs]

    @property
    def ratio(self) -> float:
        """Median over the repeats."""
        return statistics.median(self.ratios)


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turns(
    ours: Callable[[], T], reference: Callable[[], T], repeats: int
) -> tuple[list[T], list[T]]:
    """Measure both alternately, so that a slower or faster machine meets both alike."""
    pairs = [(ours(), reference()) for _ in range(repeats)]
    return [first for first, _ in pairs], [second for _, second in pairs]


def in_own_process(function: Callable[..., T], *args: Any) -> T:
    """Call an importable function in a fresh process, whose memory is its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(function, *args).result()


def peak_mib() -> float:
    """The most resident memory this process ever had."""
    status = Path("/proc/self/status")
    if status.is_file():
        # The peak that getrusage tells survives exec: a child would start with its parent's.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024
