"""What a run ranked, kept for a second evaluator (`oracle.py`) to score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import lightning as L
import pytest

from callbacks.retrieval import RetrievalEvaluation
from cirlab.benchmarks.base import Benchmark
from cirlab.retrieval.evaluation import Ranking
from tests.benchmarks import oracle
from tests.benchmarks.every_benchmark import CASES, CIRCO_DEFINITION

#: Overrides of `tests.tiny_run.tiny_experiment`.
KEEP: dict[str, Any] = {"callbacks+": [{"class_path": f"{__name__}.KeptRankings"}]}


class KeptRankings(L.Callback):
    """Keeps the rankings of the last evaluation in this process.

    Attributes:
        kept: benchmarks and what was ranked, by name.
    """

    kept: ClassVar[dict[str, tuple[Benchmark, Ranking]]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        (evaluation,) = (c for c in trainer.callbacks if isinstance(c, RetrievalEvaluation))  # type: ignore[attr-defined]
        benchmarks = {benchmark.name: benchmark for benchmark in data.benchmarks}
        self.kept.clear()
        self.kept.update({n: (benchmarks[n], r) for n, r in evaluation.rankings.items()})


def assert_scored_as_ranked(results: dict[str, Any]) -> None:
    """The metrics of `results.json` are those of the lists, by another evaluator."""
    assert results.keys() == KeptRankings.kept.keys()
    for name, (benchmark, ranking) in KeptRankings.kept.items():
        expected = _score(benchmark)(_sorted(benchmark, ranking))
        metrics = {metric: results[name]["metrics"][metric] for metric in expected}
        assert metrics == pytest.approx(expected, abs=1e-9), name


def _score(benchmark: Benchmark) -> Callable[[list[oracle.Sorted]], oracle.Metrics]:
    (definition, *_) = (c.definition for c in CASES.values() if c.kind is type(benchmark))
    if definition is CIRCO_DEFINITION:
        # Its recall is of targets that need not be in the list.
        return lambda found: oracle.average_precision(found, (5, 10))
    return definition.metrics


def _sorted(benchmark: Benchmark, ranking: Ranking) -> list[oracle.Sorted]:
    """The best images of each query; a target that is not among them stands where it was ranked."""
    ids = [item.id for item in benchmark.gallery]
    found = []
    for row, number in enumerate(ranking.queries):
        query, rank = benchmark.queries[number], int(ranking.ranks[row])
        pool = [ids[i] for i in ranking.images[row].tolist() if i >= 0]
        if rank > len(pool):
            assert not {*pool} & {*query.targets}
            pool += [""] * (rank - 1 - len(pool)) + [query.targets[0]]
        subset = [] if ranking.subset is None else ranking.subset[row].tolist()
        found.append(oracle.Sorted(query, pool, [ids[i] for i in subset if i >= 0]))
    return found
