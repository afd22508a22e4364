"""What every data module shares: checks before any work, loaders, exact resume.

A dataset family subclasses `RetrievalData` and gives `train_dataset()`. Data modules hand out
raw records; the method's collators turn them into tensors inside the loader's workers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader, DistributedSampler

from cirlab.benchmarks.base import Benchmark
from cirlab.errors import UserError
from cirlab.records import Caption, Item, Query
from datamodules.checks import (
    check_files,
    check_filled,
    check_kind,
    check_names,
    check_numbers,
    check_record,
    image_files,
)
from datamodules.loading import (
    BatchKind,
    CaptionReader,
    EvalCollator,
    EvalSamples,
    TrainCollator,
    TrainRecords,
    TrainSamples,
    init_worker,
)
from datamodules.sampling import ResumableLoader, TrainSampler


class RetrievalData(L.LightningDataModule):
    """Training records and the benchmarks that a run is evaluated on.

    Training batches are the dict of the method's `train_collator` plus `skipped`, the names of
    broken images. Evaluation loaders are a dict: `gallery/<gallery id>` once for each distinct
    gallery, then `queries/<benchmark>`; their batches hold `kind` (see `loading.BatchKind`),
    `source` (gallery id or benchmark name), `index` (B,) int64, `valid` (B,) bool, `skipped`
    and `inputs`. Under several processes all get the same number of batches: the padding
    repeats items, which are dropped by index after gathering.

    Args:
        batch_size: training samples per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        num_workers: loader processes per training process; 0 loads in the process itself.
        benchmarks: what validation and test evaluate; None trains without evaluation.
        seed: of the order of training samples and of all randomness in making them.
        series: this many consecutive training samples stay together in one batch.
        on_error: a missing or broken image ends the run (raise) or is left out, counted and
            named (skip).

    Raises:
        UserError: a batch size below 1 or a negative number of workers.
    """

    #: Record type of a training sample: Pair, Triplet or str.
    train_record: type

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        benchmarks: list[Benchmark] | None,
        seed: int,
        series: int = 1,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__()
        check_numbers({"batch_size": batch_size, "eval_batch_size": eval_batch_size}, least=1)
        check_numbers({"num_workers": num_workers}, least=0)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.benchmarks = list(benchmarks or [])
        self.seed = seed
        self.series = series
        self.on_error = on_error

    @abstractmethod
    def train_dataset(self) -> TrainRecords:
        """The training set: `len()` and records by `SampleKey`."""

    # ---- Lightning ----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Read the benchmarks, and refuse what cannot work before any weight is moved.

        Raises:
            UserError: method and data do not fit together, or a benchmark cannot be used.
        """
        if stage == "fit":
            check_record(self._module, self)
        check_names(self.benchmarks)
        for benchmark in self.benchmarks:
            check_kind(self._module, benchmark)
        for benchmark in self.benchmarks:
            benchmark.setup()
            check_filled(benchmark)
            if self.on_error == "raise":
                check_files(list(image_files(benchmark)))

    def train_dataloader(self) -> ResumableLoader:
        records = self.train_dataset()
        rank, replicas = self._place()
        sampler = TrainSampler(
            len(records),
            batch_size=self.batch_size,
            seed=self.seed,
            series=self.series,
            rank=rank,
            replicas=replicas,
        )
        return ResumableLoader(
            TrainSamples(records, on_error=self.on_error),
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=TrainCollator(self._module.train_collator(), seed=self.seed),
            persistent_workers=self.num_workers > 0,
            **self._worker_options(),
        )

    def val_dataloader(self) -> dict[str, DataLoader[Any]]:
        loaders: dict[str, DataLoader[Any]] = {}
        images, queries = self._module.image_collator(), self._module.query_collator()
        for benchmark in self.benchmarks:
            key, source = f"gallery/{benchmark.gallery_id}", benchmark.gallery_id
            if key not in loaders:
                of_texts = isinstance(benchmark.gallery[0], Caption)
                kind: BatchKind = "captions" if of_texts else "gallery"
                read = CaptionReader(queries) if of_texts else images
                collate = EvalCollator(read, kind=kind, source=source, seed=self.seed)
                loaders[key] = self._eval_loader(benchmark.gallery, collate)
        for benchmark in self.benchmarks:
            key, source = f"queries/{benchmark.name}", benchmark.name
            collate = EvalCollator(queries, kind="queries", source=source, seed=self.seed)
            loaders[key] = self._eval_loader(benchmark.asked(), collate)
        return loaders

    def test_dataloader(self) -> dict[str, DataLoader[Any]]:
        return self.val_dataloader()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Raise here, in the main process, what went wrong in a worker."""
        if isinstance(batch, UserError):
            raise batch
        return batch

    # ---- parts --------------------------------------------------------------------------

    @property
    def _module(self) -> Any:
        assert self.trainer is not None, "loaders exist only within a Trainer"
        return self.trainer.lightning_module

    def _place(self) -> tuple[int, int]:
        """(rank, replicas) among the data-parallel processes."""
        options = self.trainer.distributed_sampler_kwargs or {} if self.trainer else {}
        return options.get("rank", 0), options.get("num_replicas", 1)

    def _worker_options(self) -> dict[str, Any]:
        # A generator of its own keeps the loader from drawing its base seed from the global
        # one, whose stream would then depend on how often loaders are restarted.
        generator = torch.Generator().manual_seed(self.seed)
        return {
            "num_workers": self.num_workers,
            "worker_init_fn": init_worker,
            "generator": generator,
            "pin_memory": torch.cuda.is_available(),
        }

    def _eval_loader(
        self, items: Sequence[Item] | Sequence[Query], collate: EvalCollator
    ) -> DataLoader[Any]:
        rank, replicas = self._place()
        samples = EvalSamples(items, on_error=self.on_error)
        return DataLoader(
            samples,
            batch_size=self.eval_batch_size,
            sampler=DistributedSampler(samples, replicas, rank, shuffle=False),
            collate_fn=collate,
            **self._worker_options(),
        )
