"""Every number of every benchmark, against a second evaluator (`oracle.py`)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cirlab.benchmarks
from cirlab.benchmarks import Benchmark
from cirlab.errors import UserError
from cirlab.records import Query
from cirlab.retrieval.evaluation import Encoded, Evaluation, Gallery, evaluate
from tests.benchmarks import oracle
from tests.benchmarks.every_benchmark import CASES, Case, circo
from tests.datamodules.toys import write_jsonl

Array = np.ndarray
#: Vectors of N items, shape (N, D).
Encoder = Callable[[np.random.Generator, int], Array]

LOWER_IS_BETTER = {"mean_rank", "bri"}


@dataclass(frozen=True)
class Made:
    """A benchmark that was set up, and how it is scored."""

    case: Case
    benchmark: Benchmark

    @property
    def ids(self) -> list[str]:
        return [item.id for item in self.benchmark.gallery]

    def changed(self, row: int, **fields: Any) -> Benchmark:
        """The benchmark with another query in one place."""
        queries = list(self.benchmark.queries)
        queries[row] = replace(queries[row], **fields)
        benchmark = copy.copy(self.benchmark)
        benchmark.queries = queries
        return benchmark


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """To start further threads takes longer than products as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    case = CASES[request.param]
    benchmark = case.make(tmp_path_factory.mktemp("data"))
    benchmark.setup()
    return Made(case, benchmark)


def test_every_exported_benchmark_is_here(made: Made) -> None:
    exported = [getattr(cirlab.benchmarks, name) for name in cirlab.benchmarks.__all__]
    benchmarks = {kind for kind in exported if issubclass(kind, Benchmark)} - {Benchmark}
    assert benchmarks == {case.kind for case in CASES.values()}
    assert type(made.benchmark) is made.case.kind


# ---- encoders -------------------------------------------------------------------------------


def scattered(rng: np.random.Generator, count: int) -> Array:
    return rng.standard_normal((count, 12)).astype(np.float32)


def tied(rng: np.random.Generator, count: int) -> Array:
    """Few different scores, which float32 holds exactly."""
    rows = np.zeros((count, 16), dtype=np.float32)
    for row in rows:
        size = rng.choice([1, 4, 16], p=[0.2, 0.7, 0.1])
        row[rng.permutation(16)[:size]] = 1 / np.sqrt(size)
    return rows


def duplicated(rng: np.random.Generator, count: int) -> Array:
    """Of each image there are about four."""
    distinct = tied(rng, max(2, count // 4))
    return distinct[rng.integers(len(distinct), size=count)]


def constant(value: float) -> Encoder:
    return lambda rng, count: np.full((count, 4), value, dtype=np.float32)


def nearly_constant(rng: np.random.Generator, count: int) -> Array:
    """Cosines differ in the last digit of float32."""
    return (1 + 1e-5 * rng.standard_normal((count, 4))).astype(np.float32)


@dataclass(frozen=True)
class Vectors:
    """What an encoder made of a benchmark, by name, each (N, D)."""

    gallery: Mapping[str, Array]
    queries: Mapping[str, Array]


def vectors(benchmark: Benchmark, encode: Encoder, seed: int) -> Vectors:
    rng = np.random.default_rng(seed)
    names = {"gallery", "baseline"} if benchmark.kind == "composed" else {"gallery"}
    parts = {"query", "image_only", "text_only"} if len(names) > 1 else {"query"}
    return Vectors(
        {name: encode(rng, len(benchmark.gallery)) for name in sorted(names)},
        {name: encode(rng, len(benchmark.asked())) for name in sorted(parts)},
    )


def encoded(rows: Mapping[str, Array], valid: Array | None = None) -> Encoded:
    tensors = {name: torch.from_numpy(array) for name, array in rows.items()}
    valid = np.ones(len(next(iter(rows.values()))), dtype=bool) if valid is None else valid
    return Encoded(tensors, torch.from_numpy(valid))


def evaluated(benchmark: Benchmark, made: Vectors, top_k: int = 10) -> Evaluation:
    gallery = Gallery(benchmark.gallery, encoded(made.gallery))
    return evaluate(benchmark, gallery, encoded(made.queries), top_k)


# ---- the oracle's answer --------------------------------------------------------------------


def scores(made: Made, drawn: Vectors) -> dict[str, Array]:
    """Of the method's queries and, where queries have parts, of the baselines. Shapes (Q, G)."""
    wordings = made.benchmark.wordings
    asked = {name: oracle.mean_wording(rows, wordings) for name, rows in drawn.queries.items()}
    if "text_only" in asked:
        asked["sum"] = oracle.unit(asked["image_only"]) + oracle.unit(asked["text_only"])
    spaces = dict.fromkeys(asked, drawn.gallery.get("baseline", drawn.gallery["gallery"]))
    spaces["query"] = drawn.gallery["gallery"]
    return {name: oracle.cosines(rows, spaces[name]) for name, rows in asked.items()}


def compare(
    made: Made,
    evaluation: Evaluation,
    drawn: Vectors,
    readable: Array | None = None,
    valid: Array | None = None,
) -> list[oracle.Sorted]:
    """All metrics, baselines and breakdowns; returns what the oracle sorted."""
    benchmark, definition, results = made.benchmark, made.case.definition, evaluation.results
    readable = np.ones(len(benchmark.gallery), dtype=bool) if readable is None else readable
    valid = np.ones(len(benchmark.queries), dtype=bool) if valid is None else valid
    left = {name for name, is_left in zip(made.ids, readable, strict=True) if is_left}
    queries = oracle.readable_part(benchmark.queries, valid.tolist(), left)
    columns = readable.nonzero()[0]
    ids = [made.ids[column] for column in columns]
    found = {
        name: oracle.sort_pools(queries, table[:, columns], ids)
        for name, table in scores(made, drawn).items()
    }
    main = found.pop("query")
    assert results["metrics"] == pytest.approx(definition.metrics(main), abs=1e-9)
    assert results["baselines"].keys() == found.keys()
    for name, of_part in found.items():
        expected = definition.metrics(of_part)
        assert results["baselines"][name] == pytest.approx(expected, abs=1e-9), name
    expected_groups = definition.breakdown(main)
    assert results["breakdown"].keys() == expected_groups.keys()
    for tag, groups in expected_groups.items():
        assert results["breakdown"][tag].keys() == groups.keys()
        for value, metrics in groups.items():
            assert results["breakdown"][tag][value] == pytest.approx(metrics, abs=1e-9), value
    assert results["protocol"]["pool_size"] == len(columns)
    assert results["protocol"]["queries"] == len(queries)
    assert results["skipped_images"] == (~readable).sum() + (~valid).sum()
    assert evaluation.ranking.queries == tuple(row for row, _ in queries)
    assert evaluation.ranking.ranks.tolist() == [one.best for one in main]
    return main


def without_doubt(made: Made, encode: Encoder, seed: int) -> Vectors:
    """The first draw in which rounding decides nothing, since machines round differently."""
    for attempt in range(seed, seed + 1000, 100):
        drawn = vectors(made.benchmark, encode, attempt)
        tables = scores(made, drawn).values()
        if not any(oracle.in_doubt(made.benchmark.queries, t, made.ids) for t in tables):
            return drawn
    raise AssertionError("rounding decides about every draw")


# ---- agreement ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_random_vectors(made: Made, seed: int) -> None:
    drawn = without_doubt(made, scattered, seed)
    evaluation = evaluated(made.benchmark, drawn)
    found = compare(made, evaluation, drawn)
    lists = evaluation.ranking.images.tolist()
    assert [named(made, row) for row in lists] == [one.pool[:10] for one in found]
    subset = evaluation.ranking.subset
    if subset is not None:
        assert [named(made, row) for row in subset.tolist()] == [one.subset for one in found]


def named(made: Made, positions: list[int]) -> list[str]:
    """The ids of a row, which is padded at its end only."""
    kept = [position for position in positions if position >= 0]
    assert positions == kept + [-1] * (len(positions) - len(kept))
    return [made.ids[position] for position in kept]


@pytest.mark.parametrize("encode", [tied, duplicated])
@pytest.mark.parametrize("seed", range(2))
def test_many_ties(made: Made, encode: Encoder, seed: int) -> None:
    drawn = without_doubt(made, encode, seed)
    compare(made, evaluated(made.benchmark, drawn), drawn)


def test_lists_that_are_longer_than_the_gallery(made: Made) -> None:
    drawn = without_doubt(made, scattered, 7)
    evaluation = evaluated(made.benchmark, drawn, top_k=len(made.ids) + 5)
    found = compare(made, evaluation, drawn)
    lists = evaluation.ranking.images.tolist()
    assert [named(made, row) for row in lists] == [one.pool for one in found]


@pytest.mark.parametrize("seed", range(2))
def test_unreadable_images_are_left_out(made: Made, seed: int) -> None:
    drawn = without_doubt(made, scattered, seed)
    rng = np.random.default_rng(seed)
    benchmark = made.benchmark
    readable = rng.random(len(made.ids)) < 0.8
    lost = {name for name, is_left in zip(made.ids, readable, strict=True) if not is_left}
    valid = np.array(
        [
            query.image is None or (query.image.id not in lost and rng.random() < 0.9)
            for query in benchmark.queries
        ]
    )
    asked = valid.repeat(benchmark.wordings)
    spoilt = Vectors(
        {name: np.where(readable[:, None], rows, np.nan) for name, rows in drawn.gallery.items()},
        {name: np.where(asked[:, None], rows, np.nan) for name, rows in drawn.queries.items()},
    )
    gallery = Gallery(benchmark.gallery, encoded(spoilt.gallery, readable))
    evaluation = evaluate(benchmark, gallery, encoded(spoilt.queries, asked))
    compare(made, evaluation, drawn, readable, valid)
    assert evaluation.results["protocol"]["pool_size"] < len(made.ids)


def test_a_query_that_is_missing_in_one_wording_is_left_out(made: Made) -> None:
    drawn = without_doubt(made, scattered, 0)
    asked = np.ones(len(made.benchmark.asked()), dtype=bool)
    asked[-1] = False
    gallery = Gallery(made.benchmark.gallery, encoded(drawn.gallery))
    evaluation = evaluate(made.benchmark, gallery, encoded(drawn.queries, asked))
    valid = np.arange(len(made.benchmark.queries)) < len(made.benchmark.queries) - 1
    compare(made, evaluation, drawn, valid=valid)


# ---- collapsed encoders ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def chance(made: Made) -> dict[str, float]:
    """What random encoders reach on average."""
    each = [
        evaluated(made.benchmark, vectors(made.benchmark, scattered, seed)).results["metrics"]
        for seed in range(6)
    ]
    return {name: float(np.mean([metrics[name] for metrics in each])) for name in each[0]}


@pytest.mark.parametrize(
    "encode", [constant(1.0), constant(0.0), nearly_constant], ids=["ones", "zeros", "nearly"]
)
def test_a_collapsed_encoder_is_worse_than_chance(
    made: Made, chance: dict[str, float], encode: Encoder
) -> None:
    results = evaluated(made.benchmark, vectors(made.benchmark, encode, 0)).results
    for found in (results["metrics"], *results["baselines"].values()):
        for name, value in found.items():
            if name in LOWER_IS_BETTER:
                assert value > chance[name]
            else:
                # A pool that is smaller than the cut-off holds the target in any case.
                assert value < chance[name] or value == chance[name] == 1, name
        assert found.get("recall_at_1", 0) == 0


def test_a_constant_encoder_ranks_every_target_last(made: Made) -> None:
    drawn = vectors(made.benchmark, constant(1.0), 0)
    found = compare(made, evaluated(made.benchmark, drawn), drawn)
    for one in found:
        targets = len(one.query.targets)
        assert one.places(one.pool) == [*range(len(one.pool) - targets + 1, len(one.pool) + 1)]


def test_a_constant_encoder_never_finds_a_principal_target(tmp_path: Path) -> None:
    """CIRCO's recall is of one target; of 52 equal images the first 50 must not hold it."""
    benchmark = circo(images=52, queries=14)(tmp_path)
    benchmark.setup()
    found = evaluated(benchmark, vectors(benchmark, constant(1.0), 0)).results["metrics"]
    assert found["recall_at_50"] == 0


def test_collapsed_but_for_a_target_and_its_twin(made: Made) -> None:
    """The twin counts as ahead."""
    first = made.benchmark.queries[0]
    pool = first.candidates or made.ids
    twin = next(n for n in pool if n not in {*first.targets, *first.exclude})
    chosen = [made.ids.index(name) for name in (first.targets[0], twin)]
    asked = [query.targets[0] == first.targets[0] for query in made.benchmark.asked()]
    apart = np.zeros(len(made.ids), dtype=bool)
    apart[chosen] = True
    drawn = Vectors(
        {"gallery": np.eye(2, dtype=np.float32)[apart.astype(int)]},
        {"query": np.eye(2, dtype=np.float32)[np.array(asked).astype(int)]},
    )
    found = compare(made, evaluation := evaluated(made.benchmark, drawn), drawn)
    assert evaluation.ranking.ranks[0] == found[0].best == 2


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["gallery", "queries"])
def test_nan_in_a_single_vector_is_refused(made: Made, side: str, value: float) -> None:
    drawn = vectors(made.benchmark, scattered, 0)
    name = "gallery" if side == "gallery" else "query"
    getattr(drawn, side)[name][-1, 3] = value
    with pytest.raises(UserError, match="hold NaN or infinity"):
        evaluated(made.benchmark, drawn)


def test_no_readable_query_is_refused(made: Made) -> None:
    drawn = vectors(made.benchmark, scattered, 0)
    gallery = Gallery(made.benchmark.gallery, encoded(drawn.gallery))
    none = np.zeros(len(made.benchmark.asked()), dtype=bool)
    with pytest.raises(UserError, match="no query left to rank"):
        evaluate(made.benchmark, gallery, encoded(drawn.queries, none))


def test_an_id_that_stands_twice_in_the_gallery_is_refused(made: Made) -> None:
    drawn = vectors(made.benchmark, scattered, 0)
    gallery = [*made.benchmark.gallery]
    gallery[-1] = gallery[0]
    with pytest.raises(UserError, match="occurs more than once"):
        Gallery(gallery, encoded(drawn.gallery))


def test_no_image_is_named_twice(made: Made) -> None:
    """Also where the files do so: it would be ranked twice."""
    for query in made.benchmark.queries:
        for ids in (query.targets, query.exclude, query.candidates or (), query.subset or ()):
            assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("name", "file", "field"),
    [
        ("folder composed, candidates", "composed", "candidates"),
        ("folder composed", "composed", "targets"),
        ("folder composed", "composed", "exclude"),
        ("folder facets", "facets", "targets"),
        ("folder facets", "facets", "candidates"),
        ("folder dialogues", "dialogues", "targets"),
    ],
)
def test_own_files_that_name_an_image_twice_are_refused(
    tmp_path: Path, name: str, file: str, field: str
) -> None:
    benchmark = CASES[name].make(tmp_path)
    path = tmp_path / "val" / f"{file}.jsonl"
    first, *others = map(json.loads, path.read_text().splitlines())
    twice = names[0] if (names := first[field]) else "images/1.jpg"
    first[field] = [*names, twice, twice]
    write_jsonl(path, [first, *others])
    with pytest.raises(UserError, match=rf"line 1: .* names {twice} twice in '{field}'"):
        benchmark.setup()


def broken(query: Query) -> Iterator[tuple[str, dict[str, Any]]]:
    """Changes that no ranking could serve, and what is said of them."""
    target = query.targets[0]
    yield "names a target twice", {"targets": (*query.targets, target)}
    yield "excludes its own target", {"exclude": (*query.exclude, target)}
    yield "is not among the", {"targets": ("no such image",), "candidates": None, "subset": None}
    yield "has no target", {"targets": ()}
    if query.candidates is not None:
        others = tuple(name for name in query.candidates if name != target)
        yield "is not a candidate", {"candidates": others}
    if query.subset is not None:
        others = tuple(name for name in query.subset if name not in query.targets)
        yield "no target in its subset", {"subset": others}


def test_queries_that_break_a_rule_are_refused(made: Made) -> None:
    drawn = vectors(made.benchmark, scattered, 0)
    row = len(made.benchmark.queries) - 1
    for problem, fields in broken(made.benchmark.queries[row]):
        with pytest.raises(UserError, match=problem):
            evaluated(made.changed(row, **fields), drawn)
