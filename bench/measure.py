"""What measurements share: the row of the table, timing, a process of one's own."""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

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


class PeakMemory:
    """Watches how far the resident memory of this process grows: `with PeakMemory() as peak`.

    Sampled by a thread, because the operating system's own peak would hide what is taken
    after an earlier, higher one (of making the data, or of a parent process).
    """

    def __init__(self, interval_s: float = 0.002) -> None:
        self.interval_s = interval_s
        self.grown_mib = 0.0
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._before = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self.interval_s):
            self._look()

    def _look(self) -> None:
        grown = (self._process.memory_info().rss - self._before) / (1 << 20)
        self.grown_mib = max(self.grown_mib, grown)
