"""Images that share one property, in a user's own folder (`cirlab.reading.folder`).

The question of Promptable embeddings (arXiv 2505.15877): a query names one facet of an image, its
scene or its colour, which may not be what the image shows first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from cirlab.benchmarks.base import QueryKind, TargetRanks
from cirlab.benchmarks.folder import EXCLUDED, FolderBenchmark, check_pool, distinct
from cirlab.metrics import mean_average_precisions, recalls
from cirlab.reading.folder import Folder, facet_row
from cirlab.records import Query


class FolderFacets(FolderBenchmark):
    """A property to all images that have it: root/<split>/facets.jsonl.

    `exclude` takes out images of which nobody knows whether they have it. A query's `prompt` tells
    methods that can what to look at gallery images for. Results are broken down by facet, and
    `macro_...` are means over facets, so that one with many queries counts as one with few.

    Args:
        root: the data folder.
        split: its subfolder, e.g. val.
        name: of the results.
    """

    kind: ClassVar[QueryKind] = "text"
    breakdowns: ClassVar[tuple[str, ...]] = ("facet",)
    average_over: ClassVar[str | None] = "facet"
    exclusion = EXCLUDED

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/5/10 of any target, and mAP@10 over all of them.

        A query may have hundreds of targets, of which chance alone brings one among the first
        ten, so that recall tells little. mAP@10 asks how right the first ten are: its denominator
        is min(targets, 10), so that a query with 5 targets can reach 1 and one with 500 as well.
        """
        return recalls(ranks.targets, (1, 5, 10)) | mean_average_precisions(ranks.targets, (10,))

    def _queries(self, folder: Folder, pool: frozenset[str]) -> Iterator[Query]:
        for row in distinct(folder.rows(self.split, "facets.jsonl")):
            parsed = facet_row(row)
            check_pool(parsed, row, pool)
            yield Query(
                id=parsed.id,
                text=parsed.text,
                targets=parsed.targets,
                exclude=parsed.exclude,
                candidates=parsed.candidates,
                prompt=parsed.prompt,
                tags={"facet": parsed.facet},
            )
