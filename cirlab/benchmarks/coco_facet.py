"""COCO-Facet: text queries about one attribute of an image, each with 100 candidates.

Promptable embeddings (arXiv 2505.15877). Facts about files and rules:
https://github.com/lst627/COCO-Facet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from cirlab.benchmarks.base import Benchmark, QueryKind, TargetRanks
from cirlab.metrics import recalls
from cirlab.records import Query


class COCOFacetRules(Benchmark):
    """Recall among the query's own candidates, of each facet and their mean."""

    kind: ClassVar[QueryKind] = "text"
    breakdowns: ClassVar[tuple[str, ...]] = ("facet",)
    average_over: ClassVar[str | None] = "facet"

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/5."""
        return recalls(ranks.targets, (1, 5))
