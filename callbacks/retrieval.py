"""The only place that searches: encode, gather, rank, score, log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor

from cirlab import distributed
from cirlab.benchmarks.base import Benchmark
from cirlab.errors import UserError
from cirlab.retrieval.evaluation import PARTS, Encoded, Found, Gallery, Ranking, score, search
from cirlab.retrieval.ranking import SearchResult, locate
from cirlab.retrieval.reranking import first_of, score_blocks
from cirlab.retrieval.views import Views, plan_views

T = TypeVar("T")
#: Queries whose parts are ranked beside them, unless the method says otherwise.
COMPOSED = frozenset({"composed"})


class RetrievalEvaluation(L.Callback):
    """Evaluates every benchmark of the data module after each validation or test epoch.

    It collects what `validation_step` encodes, gathers it by dataset index over all processes
    (so that no padding of a distributed sampler is counted and no sample is missing), indexes
    every gallery once, and scores the method's queries and, for composed queries, the
    baselines of the same encoder: image only, text only, and the sum of both. Where a
    benchmark has a `rerank_depth`, the method's second stage puts that many of each query's best
    items in order again (`cirlab.retrieval.reranking`). Where the method has prompts for queries,
    it is told what each gallery is looked at for, and every query is ranked in its own view
    (`cirlab.retrieval.views`).

    Logged on every process: `val/<benchmark>/<metric>` and
    `val/<benchmark>/baseline_<name>/<metric>` (`test/...` in a test run). Breakdowns by tag
    stand only in `results`.

    Args:
        factory: FAISS index; "Flat" is exact, any other string of FAISS's `index_factory`
            approximates, and its recall against the exact one is stored with the results.
        top_k: length of the rankings that are kept for looking at (images per query).

    Attributes:
        results: by benchmark, the content of `results.json`; the same on every process.
        rankings: by benchmark; on rank 0 only.
    """

    def __init__(self, factory: str = "Flat", top_k: int = 10) -> None:
        self.factory = factory
        self.top_k = top_k
        self.results: dict[str, dict[str, Any]] = {}
        self.rankings: dict[str, Ranking] = {}
        self._batches: dict[str, list[Mapping[str, Tensor]]] = defaultdict(list)
        self._views: dict[str, Views] | None = None

    # ---- Lightning ----------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse queries that no ranking could serve before anything is encoded.

        Raises:
            UserError: see `cirlab.retrieval.ranking.locate`; or the trainer limits evaluation
                batches, or the method lacks a second stage.
        """
        if not _is_partial(trainer):
            _check_complete(trainer, stage)
        self._views = None
        for benchmark in _benchmarks(trainer):
            _check_second_stage(pl_module, benchmark)
            position = {image.id: row for row, image in enumerate(benchmark.gallery)}
            locate(benchmark.queries, position)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A query without a prompt is refused before training, not after its first epoch.
        if trainer.enable_validation:
            self._plan_views(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batches.clear()
        self._plan_views(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not _is_partial(trainer):
            self._collect(outputs, batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not _is_partial(trainer):
            self._evaluate(trainer, pl_module, stage="val")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batches.clear()
        self._plan_views(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not _is_partial(trainer):
            self._collect(outputs, batch)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not _is_partial(trainer):
            self._evaluate(trainer, pl_module, stage="test")

    # ---- parts --------------------------------------------------------------------------

    def _plan_views(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Ask the method once what its queries are about, and tell it what to look at images for.

        Rank 0 alone is asked: an answer may take a language model.
        """
        if self._views is None:
            self._views = {}
            if hasattr(pl_module, "prompts_for"):
                asked = _benchmarks(trainer), pl_module.prompts_for, pl_module.approximation()
                self._views = distributed.from_first(partial(plan_views, *asked))
        pl_module.views = self._views

    def _collect(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        """Keep one batch's vectors on the CPU in float32, beside their dataset positions."""
        rows = {"index": batch["index"].cpu(), "valid": batch["valid"].cpu()}
        vectors = {name: vector.detach().float().cpu() for name, vector in outputs.items()}
        self._batches[_key(batch["kind"], batch["source"])].append(rows | vectors)

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.results, self.rankings = {}, {}
        benchmarks = _benchmarks(trainer)
        encoded = self._gather(benchmarks)
        galleries: dict[str, Gallery] = {}
        for benchmark in benchmarks:
            # Rank 0 ranks and scores; all others have nothing to do but hear of its errors.
            parts = benchmark.kind in getattr(pl_module, "composed_kinds", COMPOSED)
            search_it = partial(self._search, benchmark, encoded, galleries, parts)
            found = _first_process(search_it)
            if benchmark.rerank_depth is not None:
                with trainer.precision_plugin.forward_context():
                    found = self._rerank(pl_module, benchmark, galleries, found)
            _first_process(partial(self._score, benchmark, galleries, found))
        self.results = distributed.broadcast_object(self.results)
        for name, results in self.results.items():
            for metric, value in _flat(results).items():
                pl_module.log(f"{stage}/{name}/{metric}", value, sync_dist=True)

    def _search(
        self,
        benchmark: Benchmark,
        encoded: Mapping[str, dict[str, Tensor]],
        galleries: dict[str, Gallery],
        parts: bool,
    ) -> Found:
        """The first stage, indexing each gallery once; the parts of queries only where wanted."""
        if (key := benchmark.gallery_id) not in galleries:
            vectors = _by_index(encoded, _key("gallery", key), len(benchmark.gallery))
            views = (self._views or {}).get(key)
            galleries[key] = Gallery(benchmark.gallery, vectors, self.factory, views)
        asked = len(benchmark.asked())
        queries = _by_index(encoded, _key("queries", benchmark.name), asked)
        if not parts:
            queries = queries.without(PARTS)
        return search(benchmark, galleries[key], queries, top_k=self.top_k)

    def _rerank(
        self,
        pl_module: Any,
        benchmark: Benchmark,
        galleries: Mapping[str, Gallery],
        found: Found | None,
    ) -> Found | None:
        """The second stage: every process scores its share of the pairs, rank 0 ranks."""
        gallery = galleries.get(benchmark.gallery_id)
        known: tuple[list[int], Tensor, SearchResult] | None = None
        if gallery is not None and found is not None:
            best = first_of(found.ranked.best, benchmark.rerank_depth or 0)
            known = (list(found.rows), gallery.rows, best)
        known = distributed.broadcast_object(known)
        assert known is not None, "rank 0 has searched"
        scores = distributed.together(partial(_second_stage, pl_module, benchmark, *known))
        cells, values = map(distributed.gather_rows, scores)
        if cells is None or values is None or gallery is None or found is None:
            return None
        return found.rerank(gallery, known[2].positions.shape[1], cells, values)

    def _score(
        self, benchmark: Benchmark, galleries: Mapping[str, Gallery], found: Found | None
    ) -> None:
        assert found is not None, "rank 0 has searched"
        scored = score(benchmark, galleries[benchmark.gallery_id], found)
        self.results[benchmark.name] = scored.results
        self.rankings[benchmark.name] = scored.ranking

    def _gather(self, benchmarks: list[Benchmark]) -> dict[str, dict[str, Tensor]]:
        """All vectors of every gallery and query set, on rank 0; elsewhere nothing."""
        keys = {_key("gallery", b.gallery_id): None for b in benchmarks}
        keys |= {_key("queries", b.name): None for b in benchmarks}
        encoded = {}
        for key in keys:
            batches = self._batches.pop(key)
            _check_alike(key, batches)
            gathered = {
                name: distributed.gather_rows(torch.cat([batch[name] for batch in batches]))
                for name in sorted(batches[0])
            }
            if distributed.rank() == 0:
                encoded[key] = {n: rows for n, rows in gathered.items() if rows is not None}
        return encoded


def _first_process(work: Callable[[], T]) -> T | None:
    """What `work` gives on rank 0, None elsewhere; its error on all."""
    return distributed.together(lambda: work() if distributed.rank() == 0 else None)


@torch.inference_mode()
def _second_stage(
    module: Any,
    benchmark: Benchmark,
    rows: Sequence[int],
    places: Tensor,
    best: SearchResult,
) -> tuple[Tensor, Tensor]:
    """This process's share of the second stage.

    Args:
        module: the method.
        benchmark: its gallery holds all items, the readable ones at `places`.
        rows: positions of the Q ranked queries.
        places: positions of the readable items. Shape (G,), int64.
        best: each query's best items, counted among the readable ones, K of them.

    Returns:
        Cells (P, 2), int64, and scores (P,), float32.
    """
    queries = [benchmark.queries[row] for row in rows]
    items = [benchmark.gallery[place] for place in places.tolist()]
    share = slice(distributed.rank(), None, distributed.world_size())
    cells, values = [torch.empty(0, 2, dtype=torch.long)], [torch.empty(0)]
    for found, scored in score_blocks(module.rerank, queries, items, best, share):
        cells.append(found)
        values.append(scored)
    return torch.cat(cells), torch.cat(values)


def _check_alike(what: str, batches: Sequence[Mapping[str, Tensor]]) -> None:
    for batch in batches:
        if batch.keys() != batches[0].keys():
            raise RuntimeError(
                f"{what}: validation_step gave {', '.join(batches[0])} for one batch and "
                f"{', '.join(batch)} for another; it must give the same for all"
            )


def _by_index(encoded: Mapping[str, dict[str, Tensor]], what: str, size: int) -> Encoded:
    """Put gathered rows in the order of the dataset, dropping what the sampler repeated.

    Raises:
        RuntimeError: the rows are not exactly those of the dataset.
    """
    columns = dict(encoded[what])
    index = columns.pop("index")
    first = torch.full((size,), -1, dtype=torch.long)
    # Written backwards, the first of several copies of a row is the one that stays.
    for row, place in reversed(list(enumerate(index.tolist()))):
        first[place] = row
    missing = (first < 0).nonzero().flatten()
    if len(missing):
        raise RuntimeError(
            f"{what}: {len(missing)} of {size} rows were never encoded, the first is number "
            f"{missing[0].item()}; a loader or sampler does not cover its dataset"
        )
    valid = columns.pop("valid")[first]
    return Encoded({name: rows[first] for name, rows in columns.items()}, valid)


def _flat(results: Mapping[str, Any]) -> dict[str, float]:
    """Metrics and baselines under the names they are logged by."""
    flat = dict(results["metrics"])
    for name, metrics in results["baselines"].items():
        flat |= {f"baseline_{name}/{metric}": value for metric, value in metrics.items()}
    return flat


def _key(kind: str, source: str) -> str:
    """Images and captions of a gallery are one thing here."""
    return f"{'queries' if kind == 'queries' else 'gallery'}/{source}"


def _benchmarks(trainer: L.Trainer) -> list[Benchmark]:
    """The benchmarks of the trainer's data module, whatever class that is."""
    data = getattr(trainer, "datamodule", None)
    benchmarks = getattr(data, "benchmarks", None)
    if benchmarks is None:
        raise UserError(
            "retrieval evaluation needs a data module with benchmarks, but the trainer has "
            f"{type(data).__name__}; pass one as data, or remove the callback"
        )
    return list(benchmarks)


def _is_partial(trainer: L.Trainer) -> bool:
    """Whether this is only a trial on a few batches, which no ranking can be made of."""
    trials = (getattr(trainer, name) for name in ("fast_dev_run", "overfit_batches"))
    return trainer.sanity_checking or any(trials)


def _check_second_stage(module: L.LightningModule, benchmark: Benchmark) -> None:
    if benchmark.rerank_depth is not None and not getattr(module, "reranks", False):
        raise UserError(
            f"benchmark {benchmark.name!r} has the best {benchmark.rerank_depth} items ranked "
            f"again, but {type(module).__name__} has no second stage; set its rerank_depth to null"
        )


def _check_complete(trainer: L.Trainer, stage: str) -> None:
    name = "limit_test_batches" if stage == "test" else "limit_val_batches"
    limit: int | float = getattr(trainer, name)
    # An integer counts batches, so that 1 is a limit while 1.0 is none.
    if limit != 0 and (limit != 1 or isinstance(limit, int)):
        raise UserError(
            f"trainer.{name} is {limit}, but ranks need the whole gallery; remove the limit, "
            "or set it to 0 to train without evaluation"
        )
