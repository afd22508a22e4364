"""CIRCO: composed retrieval in COCO's unlabelled images, with several targets per query.

Baldrati et al., 2023 (arXiv 2303.15247). Facts about files and rules:
https://github.com/miccunifi/CIRCO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from cirlab.benchmarks.base import Benchmark, QueryKind, TargetRanks
from cirlab.metrics import mean_average_precisions, recalls
from cirlab.records import Query

CUTOFFS = (5, 10, 25, 50)


class CIRCORules(Benchmark):
    """mAP over all targets, recall of the principal one."""

    kind: ClassVar[QueryKind] = "composed"
    breakdowns: ClassVar[tuple[str, ...]] = ("aspect",)

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """mAP@5/10/25/50, and recall@5/10/25/50 of the principal target alone."""
        found = mean_average_precisions(ranks.targets, CUTOFFS)
        return found | recalls(ranks.targets[:, :1], CUTOFFS)
