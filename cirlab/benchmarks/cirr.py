"""CIRR: composed retrieval on photographs (Liu et al., arXiv 2108.04024).

The pool of a split is what `image_splits/split.rc2.<split>.json` lists, never what lies in the
image folder: that holds NLVR2's other images as well, and ranking them costs about 13 points of
recall@1.
"""

from __future__ import annotations

from collections.abc import Sequence

from cirlab.benchmarks.base import Benchmark, TargetRanks
from cirlab.metrics import recalls
from cirlab.records import Query

#: The number that papers sort by: (R@5 + R_subset@1) / 2.
HEADLINE = "mean_of_recall_at_5_and_subset_recall_at_1"


class CIRRRules(Benchmark):
    """The reference is removed by id; only the principal target counts, in pool and subset."""

    kind = "composed"
    exclusion = "the reference image"
    #: Whose server scores the rankings, see `cirlab.submission`; None where answers are public.
    submission: str | None = None

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/5/10/50, recall@1/2/3 in the subset, and CIRR's mean of two of them."""
        found = recalls(ranks.targets[:, :1], (1, 5, 10, 50))
        if ranks.subset is None:
            return found
        found |= recalls(ranks.subset[:, :1], (1, 2, 3), prefix="subset_recall")
        return found | {HEADLINE: (found["recall_at_5"] + found["subset_recall_at_1"]) / 2}
