"""The only place that searches: encode, gather, rank, score, log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from cirlab import distributed
from cirlab.benchmarks.base import Benchmark
from cirlab.errors import UserError
from cirlab.evaluation import Encoded, Gallery, Ranking, evaluate
from cirlab.ranking import locate


class RetrievalEvaluation(L.Callback):
    """Evaluates every benchmark of the data module after each validation or test epoch.

    It collects what `validation_step` encodes, gathers it by dataset index over all processes
    (so that no padding of a distributed sampler is counted and no sample is missing), indexes
    every gallery once, and scores the method's queries and, for composed queries, the
    baselines of the same encoder: image only, text only, and the sum of both.

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

    # ---- Lightning ----------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse queries that no ranking could serve before anything is encoded.

        Raises:
            UserError: see `cirlab.ranking.locate`; or the trainer limits evaluation batches.
        """
        if not _is_partial(trainer):
            _check_complete(trainer, stage)
        for benchmark in _benchmarks(trainer):
            position = {image.id: row for row, image in enumerate(benchmark.gallery)}
            locate(benchmark.queries, position)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batches.clear()

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

    def _collect(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        """Keep one batch's vectors on the CPU in float32, beside their dataset positions."""
        rows = {"index": batch["index"].cpu(), "valid": batch["valid"].cpu()}
        vectors = {name: vector.detach().float().cpu() for name, vector in outputs.items()}
        self._batches[_key(batch["kind"], batch["source"])].append(rows | vectors)

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        benchmarks = _benchmarks(trainer)
        encoded = self._gather(benchmarks)
        self.results, self.rankings = {}, {}
        error: UserError | RuntimeError | None = None
        if distributed.rank() == 0:
            try:
                self._evaluate_all(benchmarks, encoded)
            except (UserError, RuntimeError) as caught:
                # The other processes wait for results; they have to hear of this instead.
                error = caught
        error, self.results = distributed.broadcast_object((error, self.results))
        if error is not None:
            raise error
        for name, results in self.results.items():
            for metric, value in _flat(results).items():
                pl_module.log(f"{stage}/{name}/{metric}", value, sync_dist=True)

    def _evaluate_all(
        self, benchmarks: list[Benchmark], encoded: Mapping[str, dict[str, Tensor]]
    ) -> None:
        """Fill `results` and `rankings`, indexing each gallery once."""
        galleries: dict[str, Gallery] = {}
        for benchmark in benchmarks:
            if (key := benchmark.gallery_id) not in galleries:
                vectors = _by_index(encoded, _key("gallery", key), len(benchmark.gallery))
                galleries[key] = Gallery(benchmark.gallery, vectors, factory=self.factory)
            asked = len(benchmark.asked())
            queries = _by_index(encoded, _key("queries", benchmark.name), asked)
            found = evaluate(benchmark, galleries[key], queries, top_k=self.top_k)
            self.results[benchmark.name] = found.results
            self.rankings[benchmark.name] = found.ranking

    def _gather(self, benchmarks: list[Benchmark]) -> dict[str, dict[str, Tensor]]:
        """All vectors of every gallery and query set, on rank 0; elsewhere nothing."""
        keys = {_key("gallery", b.gallery_id): None for b in benchmarks}
        keys |= {_key("queries", b.name): None for b in benchmarks}
        encoded = {}
        for key in keys:
            batches = self._batches.pop(key)
            gathered = {
                name: distributed.gather_rows(torch.cat([batch[name] for batch in batches]))
                for name in sorted(batches[0])
            }
            if distributed.rank() == 0:
                encoded[key] = {n: rows for n, rows in gathered.items() if rows is not None}
        return encoded


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


def _check_complete(trainer: L.Trainer, stage: str) -> None:
    name = "limit_test_batches" if stage == "test" else "limit_val_batches"
    limit: int | float = getattr(trainer, name)
    # An integer counts batches, so that 1 is a limit while 1.0 is none.
    if limit != 0 and (limit != 1 or isinstance(limit, int)):
        raise UserError(
            f"trainer.{name} is {limit}, but ranks need the whole gallery; remove the limit, "
            "or set it to 0 to train without evaluation"
        )
