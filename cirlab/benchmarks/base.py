"""The benchmark contract: data plus rules plus a pure scoring function, and no model.

A benchmark never encodes and never searches. The retrieval callback encodes its gallery and
queries, ranks the targets (`cirlab.retrieval.index`), and hands the ranks back to
`Benchmark.score`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Generic, Literal, TypeVar

import torch

from cirlab.errors import UserError
from cirlab.records import Caption, Item, Query

T = TypeVar("T")
#: Of queries that have no candidates of their own.
WHOLE_GALLERY = "the whole gallery"
#: Of images that are looked at for nothing in particular.
NO_VIEWS = "none"

QueryKind = Literal["text", "composed", "image", "dialogue"]


@dataclass(frozen=True)
class Protocol:
    """What makes two numbers comparable. It is stored and printed with every result.

    Attributes:
        pool_size: items of the gallery.
        candidates: what each query is ranked against: the whole gallery, or how many of its own.
        exclusion: which images are removed before ranking, by id.
        query_template: how a query's words become the text a model reads.
        wordings: in how many wordings a query is asked, whose unit vectors are averaged.
        tie_rule: "pessimistic": a target ranks after everything that scores as high, up to
            `cirlab.retrieval.index.TIE_TOLERANCE`, so that a collapsed encoder never looks good.
        rerank_depth: how many of each query's best items a second stage put in order again.
        annotations: checksum of gallery, queries, targets and rules.
        views: how many prompts the gallery's images are looked at for, and a checksum of which
            query has which (`cirlab.retrieval.views`). The method's choice, as its weights are:
            told with every number, but numbers compare across it.
    """

    benchmark: str
    pool_size: int
    queries: int
    exclusion: str
    query_template: str
    annotations: str
    candidates: str = WHOLE_GALLERY
    wordings: int = 1
    rerank_depth: int = 0
    tie_rule: str = "pessimistic"
    score_dtype: str = "float32"
    index: str = "Flat"
    views: str = NO_VIEWS

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
    #: Tags by which the metrics are broken down.
    breakdowns: ClassVar[tuple[str, ...]] = ()
    #: Tag over whose values metrics are averaged as well, as `macro_<metric>`.
    average_over: ClassVar[str | None] = None
    exclusion: str = "none"
    #: Whose server scores the rankings, "cirr" or "circo"; None where answers are public.
    submission: str | None = None
    #: Length of the rankings that a submission needs.
    list_size: int = 0
    #: How many of each query's best items a method's second stage puts in order again; None: none.
    rerank_depth: int | None = None
    #: False for test splits whose answers a server keeps: queries are ranked, not scored.
    answered: bool = True

    name: str
    query_template: str = "{text}"
    gallery: Sequence[Item]
    queries: Sequence[Query]

    @property
    def gallery_id(self) -> str:
        """Benchmarks with an equal gallery id share one encoding of it."""
        return self.name

    @property
    def wordings(self) -> int:
        """In how many wordings each query is asked."""
        return 1

    def asked(self) -> Sequence[Query]:
        """What is encoded: the `wordings` of the first query, of the second, and so on.

        Their unit vectors are averaged, so that ranking sees one vector for each query.
        """
        return self.queries

    @abstractmethod
    def setup(self) -> None:
        """Read gallery and queries.

        Raises:
            UserError: the data is missing, malformed or contradicts the rules.
        """

    @abstractmethod
    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Metrics of some or all queries, as fractions, e.g. {"recall_at_10": 0.42}.

        Args:
            ranks: of the targets of these queries, row by row.
            queries: Q of them, in the benchmark's order.
        """

    def metrics(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """`score`, with averages over the values of the tag `average_over`."""
        found = self.score(ranks, queries)
        if self.average_over is None:
            return found
        groups = list(self.breakdown(ranks, queries, self.average_over).values())
        macro = {f"macro_{name}": sum(g[name] for g in groups) / len(groups) for name in found}
        return found | macro

    def breakdown(
        self, ranks: TargetRanks, queries: Sequence[Query], tag: str
    ) -> dict[str, dict[str, float]]:
        """`score` of the queries that share a value of one tag, by value."""
        return {
            value: self.score(ranks.select(rows), [queries[row] for row in rows])
            for value, rows in breakdown_rows(queries, tag).items()
        }

    def metric_names(self) -> list[str]:
        """What `metrics` returns for this benchmark, told by made-up ranks; none if unanswered."""
        if not self.answered:
            return []
        width = max(len(query.targets) for query in self.queries)
        ranks = torch.arange(1, width + 1).expand(len(self.queries), width)
        subset = ranks if self.queries[0].subset else None
        return sorted(self.metrics(TargetRanks(ranks, subset), self.queries))

    def protocol(self) -> Protocol:
        """The identity of this evaluation."""
        return Protocol(
            benchmark=self.name,
            pool_size=len(self.gallery),
            queries=len(self.queries),
            exclusion=self.exclusion,
            query_template=self.query_template,
            annotations=self.checksum(),
            candidates=ranked_against(self.queries),
            wordings=self.wordings,
        )

    def checksum(self) -> str:
        """Short hash over everything that decides a rank besides the embeddings."""
        digest = hashlib.sha256()
        for item in self.gallery:
            text = f"\t{item.text}" if isinstance(item, Caption) else ""
            digest.update(f"{item.id}{text}\n".encode())
        pools = SharedPools(lambda pool: hashlib.sha256(repr(pool).encode()).hexdigest())
        for q in self.queries:
            reference = q.image.id if q.image else ""
            pool = None if q.candidates is None else pools(q.candidates)
            row = (q.id, q.text, reference, q.targets, q.exclude, pool, q.subset, q.prompt)
            digest.update(f"{row!r}\n".encode())
        return digest.hexdigest()[:16]


def check_rerank_depth(depth: int | None) -> int | None:
    """The depth itself.

    Raises:
        UserError: it is below 1.
    """
    if depth is not None and depth < 1:
        raise UserError(
            f"rerank_depth is {depth}; give a number from 1, or null for no second stage"
        )
    return depth


def ranked_against(queries: Iterable[Query]) -> str:
    """How many images queries are ranked against, where they have candidates of their own."""
    sizes = sorted({0 if query.candidates is None else len(query.candidates) for query in queries})
    if sizes in ([0], []):
        return WHOLE_GALLERY
    named = [str(size) if size else WHOLE_GALLERY for size in sizes]
    told = ", ".join(named) if len(named) < 5 else f"{named[0]} to {named[-1]}"
    return f"own, {told}"


class SharedPools(Generic[T]):
    """A function of candidates that is computed once for each tuple, however many queries share it.

    Args:
        compute: the function.
    """

    def __init__(self, compute: Callable[[tuple[str, ...]], T]) -> None:
        self._compute = compute
        # By identity: to hash a pool of thousands for each of thousands of queries takes seconds.
        # The pools are kept, so that no other tuple can have the identity of one of them.
        self._known: dict[int, tuple[tuple[str, ...], T]] = {}

    def __call__(self, pool: tuple[str, ...]) -> T:
        if id(pool) not in self._known:
            self._known[id(pool)] = pool, self._compute(pool)
        return self._known[id(pool)][1]


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
