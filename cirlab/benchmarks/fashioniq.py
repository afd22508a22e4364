"""Fashion-IQ: composed retrieval of garments, three categories (Wu et al., arXiv 1905.12794)."""

from __future__ import annotations

from collections.abc import Sequence

from cirlab.benchmarks.base import Benchmark, TargetRanks
from cirlab.metrics import recalls
from cirlab.records import Query


class FashionIQRules(Benchmark):
    """Recall in each category's own pool; the plain mean of the categories is the headline."""

    kind = "composed"
    breakdowns = ("category",)
    average_over = "category"

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@10/50."""
        return recalls(ranks.targets[:, :1], (10, 50))
