"""GeneCIS: which of a few images resembles the reference in what a word names.

Vaze et al., 2023 (arXiv 2306.07969). Facts about files and rules:
https://github.com/facebookresearch/genecis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from cirlab.benchmarks.base import Benchmark, QueryKind, TargetRanks
from cirlab.metrics import recalls
from cirlab.records import Query


class GeneCISRules(Benchmark):
    """Recall in the query's own gallery; `macro_recall_at_1` over the tasks is the headline."""

    kind: ClassVar[QueryKind] = "composed"
    breakdowns: ClassVar[tuple[str, ...]] = ("task",)
    average_over: ClassVar[str | None] = "task"

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/2/3."""
        return recalls(ranks.targets, (1, 2, 3))
