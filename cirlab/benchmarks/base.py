"""The benchmark contract: data plus rules plus a pure scoring function, and no model.

A benchmark never encodes and never searches. The retrieval callback encodes its gallery and
queries, ranks the targets (`cirlab.index`), and hands the ranks back to `Benchmark.score`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import torch

from cirlab.records import Image, Query

QueryKind = Literal["text", "composed", "image", "dialogue"]


@dataclass(frozen=True)
class Protocol:
    """What makes two numbers comparable. It is stored and printed with every result.

    Attributes:
        pool_size: images in the gallery that queries are ranked against.
        exclusion: which images are removed before ranking, by id.
        query_template: how a query's words become the text a model reads.
        tie_rule: "pessimistic": a target ranks after everything that scores as high, up to
            `cirlab.index.TIE_TOLERANCE`, so that a collapsed encoder never looks good.
        annotations: checksum of gallery, queries, targets and rules.
    """

    benchmark: str
    pool_size: int
    queries: int
    exclusion: str
    query_template: str
    annotations: str
    tie_rule: str = "pessimistic"
    score_dtype: str = "float32"
    index: str = "Flat"

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)


@dataclass(frozen=True)
class TargetRanks:
    """Where the targets of every query stand. All metrics are functions of this.

    Attributes:
        targets: 1-based pessimistic ranks of each query's targets, in the order of
            `Query.targets`, padded with 0. Shape (Q, T), int64. A target that an
            approximate index did not return has rank pool size + 1.
        subset: the same within `Query.subset`; None where the benchmark has no subsets.
            Shape (Q, T), int64.
    """

    targets: torch.Tensor
    subset: torch.Tensor | None = None

    def select(self, rows: Sequence[int]) -> TargetRanks:
        """The ranks of some queries only, for a breakdown by tag."""
        keep = torch.as_tensor(rows, dtype=torch.long)
        subset = None if self.subset is None else self.subset[keep]
        return TargetRanks(targets=self.targets[keep], subset=subset)


class Benchmark(ABC):
    """Gallery, queries and rules.

    Instances are cheap to make (they are built while the YAML is read) and picklable;
    `setup()` reads the data and is idempotent. `gallery` and `queries` are valid after it.
    """

    kind: ClassVar[QueryKind]
    #: Tags by which the retrieval callback breaks the metrics down.
    breakdowns: ClassVar[tuple[str, ...]] = ()
    exclusion: ClassVar[str] = "none"

    name: str
    query_template: str = "{text}"
    gallery: Sequence[Image]
    queries: Sequence[Query]

    @property
    def gallery_id(self) -> str:
        """Benchmarks with an equal gallery id share one encoding of it."""
        return self.name

    @abstractmethod
    def setup(self) -> None:
        """Read gallery and queries.

        Raises:
            UserError: the data is missing, malformed or contradicts the rules.
        """

    @abstractmethod
    def score(self, ranks: TargetRanks) -> dict[str, float]:
        """Metrics of some or all queries, as fractions, e.g. {"recall_at_10": 0.42}."""

    def metric_names(self) -> list[str]:
        """What `score` returns for this benchmark, told by a made-up ranking of one query."""
        query = self.queries[0]
        ranks = torch.arange(1, len(query.targets) + 1)[None]
        return sorted(self.score(TargetRanks(ranks, ranks if query.subset else None)))

    def protocol(self) -> Protocol:
        """The identity of this evaluation."""
        return Protocol(
            benchmark=self.name,
            pool_size=len(self.gallery),
            queries=len(self.queries),
            exclusion=self.exclusion,
            query_template=self.query_template,
            annotations=self.checksum(),
        )

    def checksum(self) -> str:
        """Short hash over everything that decides a rank besides the embeddings."""
        digest = hashlib.sha256()
        for image in self.gallery:
            digest.update(f"{image.id}\n".encode())
        for q in self.queries:
            reference = q.image.id if q.image else ""
            row = (q.id, q.text, reference, q.targets, q.exclude, q.candidates, q.subset, q.prompt)
            digest.update(f"{row!r}\n".encode())
        return digest.hexdigest()[:16]


def breakdown_rows(queries: Iterable[Query], tag: str) -> dict[str, list[int]]:
    """Group query positions by the values of one tag, values sorted.

    A query with several values, written "a+b", stands in each of their groups.
    """
    groups: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        if tag in query.tags:
            for value in dict.fromkeys(query.tags[tag].split("+")):
                groups.setdefault(value, []).append(row)
    return dict(sorted(groups.items()))
