"""What every retrieval method shares: the encoding contract, named losses, optimisers.

A method subclasses `RetrievalModule`, builds its weights in `configure_model`, and fills in
the abstract methods. Validation only encodes: ranking and scoring are the retrieval
callback's work (`callbacks.retrieval`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from cirlab.benchmarks.base import QueryKind
from cirlab.errors import UserError
from cirlab.records import Image, Query

#: A loader batch of one method: tensors (possibly nested) that Lightning moves to the device.
Inputs = Mapping[str, Any]


class RetrievalModule(L.LightningModule):
    """One published method: how it learns and how it encodes.

    Args:
        optimizer: builds the optimiser from the trainable parameters.
        scheduler: builds the learning-rate schedule, stepped every optimiser step;
            None keeps the rate constant.

    Batches: training batches come from `train_collator`. Evaluation batches are made by the
    data module around `image_collator` and `query_collator` and hold
    `kind` ("gallery" or "queries"), `source` (gallery id or benchmark name),
    `index` (B,) positions in the dataset, `valid` (B,) and `inputs`.
    """

    #: Record type a training sample must have (Pair, Triplet, str); None: training-free.
    train_record: ClassVar[type | None] = None
    query_kinds: ClassVar[frozenset[QueryKind]] = frozenset()

    def __init__(
        self, optimizer: OptimizerCallable, scheduler: LRSchedulerCallable | None
    ) -> None:
        super().__init__()
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        # Checkpoints hold only what is trained, so loading must accept missing frozen keys;
        # `on_load_checkpoint` checks that every trainable one is there.
        self.strict_loading = False

    # ---- the contract -------------------------------------------------------------------

    @abstractmethod
    def train_collator(self) -> Callable[[Sequence[Any]], Inputs]:
        """A picklable function from training records to a batch, run in loader workers."""

    @abstractmethod
    def image_collator(self) -> Callable[[Sequence[Image]], Inputs]:
        """A picklable function from gallery images to the inputs of `encode_images`."""

    @abstractmethod
    def query_collator(self) -> Callable[[Sequence[Query]], Inputs]:
        """A picklable function from queries to the inputs of `encode_queries`."""

    @abstractmethod
    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        """Named scalar losses of one batch; their sum is minimised."""

    @abstractmethod
    def encode_images(self, inputs: Inputs, prompt: str | None = None) -> torch.Tensor:
        """Unit vectors of gallery images, (B, D)."""

    @abstractmethod
    def encode_queries(self, inputs: Inputs) -> torch.Tensor:
        """Unit vectors of queries, (B, D)."""

    def encode_baselines(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Unit vectors of a composed query's parts by the same encoder.

        Returns {"image_only": (B, D), "text_only": (B, D)}, or nothing where the method has
        no such parts. The retrieval callback adds their sum.
        """
        return {}

    def encode_baseline_gallery(self, inputs: Inputs) -> torch.Tensor | None:
        """Gallery vectors (B, D) for the baselines, where `encode_images` has left the space
        of the pretrained encoder (a tuned vision tower); None: the gallery serves both."""
        return None

    # ---- Lightning ----------------------------------------------------------------------

    def training_step(self, batch: Inputs, batch_idx: int) -> torch.Tensor:
        terms = self.losses(batch)
        total = torch.stack(list(terms.values())).sum()
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        self.log("train/loss", total, prog_bar=True)
        return total

    def validation_step(
        self, batch: Inputs, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, torch.Tensor]:
        """Encode one evaluation batch; the retrieval callback picks the vectors up.

        Returns {"gallery": (B, D)[, "baseline": (B, D)]} or
        {"query": (B, D)[, "image_only": (B, D), "text_only": (B, D)]}.
        """
        inputs = batch["inputs"]
        if batch["kind"] == "gallery":
            vectors = {"gallery": self.encode_images(inputs, prompt=batch.get("prompt"))}
            baseline = self.encode_baseline_gallery(inputs)
            return vectors if baseline is None else vectors | {"baseline": baseline}
        return {"query": self.encode_queries(inputs)} | self.encode_baselines(inputs)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trainable = [p for p in self.parameters() if p.requires_grad]
        if not trainable:
            raise UserError(f"{type(self).__name__} has nothing to train: every weight is frozen")
        optimizer = self.optimizer_factory(trainable)
        if self.scheduler_factory is None:
            return optimizer
        scheduler = self.scheduler_factory(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
