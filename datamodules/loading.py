"""What runs inside a loader's worker: decoding, skipping broken images, collating.

A `UserError` travels to the main process as the batch itself: raised in a worker, PyTorch would
bury its sentence in a traceback.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import PIL.Image
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import Dataset

from cirlab.errors import UserError
from cirlab.records import Caption, DecodedImage, Image, Item, Query, SampleKey

R = TypeVar("R")
OnError = Literal["raise", "skip"]
#: What a batch of an evaluation holds: a gallery's images, a gallery's texts, or queries.
BatchKind = Literal["gallery", "captions", "queries"]
Collate = Callable[[Sequence[Any]], Mapping[str, Any]]

#: Broken records in a row after which a data set counts as broken altogether.
MAX_TRIES = 64


class TrainRecords(Protocol):
    """A training set: records by key, all randomness derived from the key."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey, /) -> Any: ...


class BrokenImage(Exception):
    """An image of a record is missing or does not decode; its text is the image's id."""


class Sample(NamedTuple):
    """A training record, its key, and the names of images skipped on the way to it."""

    key: SampleKey
    record: Any
    skipped: tuple[str, ...]


class EvalSample(NamedTuple):
    """A gallery item or query, its position, and its image's name if that is broken."""

    position: int
    item: Item | Query
    broken: str | None


def map_images(record: R, change: Callable[[Image], Image]) -> R:
    """The record with each image changed; anything that is not a record is returned as it is."""
    if isinstance(record, Image):
        return change(record)  # type: ignore[return-value]
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        return record
    images = {
        field.name: change(value)
        for field in dataclasses.fields(record)
        if isinstance(value := getattr(record, field.name), Image)
    }
    return dataclasses.replace(record, **images)


def decode(record: R) -> R:
    """The record with its images decoded.

    Raises:
        BrokenImage: named after the first image that is missing or does not decode.
    """
    return map_images(record, _decoded)


def _decoded(image: Image) -> DecodedImage:
    try:
        return DecodedImage(id=image.id, pixels=image.load())
    except UserError as error:
        raise BrokenImage(image.id) from error


class TrainSamples(Dataset[Sample | UserError]):
    """Training records by key.

    With `on_error="skip"` a record with a broken image is replaced by the next one that is
    whole, so that batches keep their size under every strategy. Images are then decoded here
    (once: the collator finds pixels); otherwise they stay as they are, and a collator that
    needs no pixels pays for none.
    """

    def __init__(self, records: TrainRecords, *, on_error: OnError) -> None:
        self.records = records
        self.on_error = on_error

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey | int) -> Sample | UserError:
        # Trainer(overfit_batches=...) replaces the sampler by one that yields plain indices.
        key = SampleKey(0, key) if isinstance(key, int) else key
        try:
            if self.on_error == "raise":
                return Sample(key, self.records[key], ())
            return self._first_whole(key)
        except UserError as error:
            return error

    def _first_whole(self, key: SampleKey) -> Sample:
        skipped: list[str] = []
        for step in range(min(MAX_TRIES, len(self))):
            at = SampleKey(key.epoch, (key.index + step) % len(self))
            try:
                return Sample(key, decode(self.records[at]), tuple(skipped))
            except BrokenImage as error:
                skipped.append(str(error))
        raise UserError(
            f"{len(skipped)} records in a row have a broken or missing image, from "
            f"{skipped[0]} to {skipped[-1]}; check that the data folder is the right one"
        )


class TrainCollator:
    """A method's collator, with its randomness made a function of the samples.

    The global generators are seeded from (seed, epoch, first index of the batch) while the
    method's collator runs and put back after it. So augmentations are the same in a run that
    was resumed, whatever worker they run in.

    Args:
        collate: a method's `train_collator()`.
        seed: of the run's data.
    """

    def __init__(self, collate: Collate, *, seed: int) -> None:
        self.collate = collate
        self.seed = seed

    def __call__(self, samples: Sequence[Sample | UserError]) -> dict[str, Any] | UserError:
        whole: list[Sample] = []
        for sample in samples:
            if isinstance(sample, UserError):
                return sample
            whole.append(sample)
        names = [name for sample in whole for name in sample.skipped]
        try:
            with _seeded(self.seed, *whole[0].key):
                batch = self.collate([sample.record for sample in whole])
        except UserError as error:
            return error
        return {**batch, "skipped": names}


@contextmanager
def _seeded(*entropy: int) -> Iterator[None]:
    """Global generators seeded by the numbers given, and put back afterwards."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    with isolate_rng(include_cuda=False):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global generator is what libraries use
        # torch.manual_seed would also reseed the accelerator, which nobody puts back.
        torch.default_generator.manual_seed(seed)
        yield


class EvalSamples(Dataset[EvalSample]):
    """A benchmark's gallery or queries by position.

    With `on_error="skip"` a broken image becomes a black one and is named.
    """

    def __init__(self, items: Sequence[Item] | Sequence[Query], *, on_error: OnError) -> None:
        self.items = items
        self.on_error = on_error

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> EvalSample:
        item = self.items[index]
        if self.on_error == "raise":
            return EvalSample(index, item, None)
        try:
            return EvalSample(index, decode(item), None)
        except BrokenImage as error:
            return EvalSample(index, _blank(item), str(error))


def _blank(item: Item | Query) -> Item | Query:
    black = PIL.Image.new("RGB", (224, 224))
    if isinstance(item, Image):
        return DecodedImage(id=item.id, pixels=black)
    # Only a query with an image can have a broken one.
    assert isinstance(item, Query) and item.image is not None
    return dataclasses.replace(item, image=DecodedImage(id=item.image.id, pixels=black))


@dataclass(frozen=True)
class CaptionReader:
    """A gallery's texts, read as text queries are.

    Args:
        collate: a method's `query_collator()`.
    """

    collate: Collate

    def __call__(self, captions: Sequence[Caption]) -> Mapping[str, Any]:
        return self.collate([Query(id=c.id, text=c.text, targets=()) for c in captions])


class EvalCollator:
    """Wraps a method's image or query collator with what the retrieval callback needs.

    Args:
        collate: a method's `image_collator()` or `query_collator()`.
        kind: what the items are.
        source: the gallery's id or the benchmark's name.
        seed: of any randomness in the collator, so that an evaluation repeats itself and leaves
            the training that it interrupts as it was.
    """

    def __init__(self, collate: Collate, *, kind: BatchKind, source: str, seed: int) -> None:
        self.collate = collate
        self.seed = seed
        self.kind = kind
        self.source = source

    def __call__(self, samples: Sequence[EvalSample]) -> dict[str, Any] | UserError:
        try:
            with _seeded(self.seed, samples[0].position):
                inputs = self.collate([sample.item for sample in samples])
        except UserError as error:
            return error
        return {
            "kind": self.kind,
            "source": self.source,
            "index": torch.tensor([sample.position for sample in samples]),
            "valid": torch.tensor([sample.broken is None for sample in samples]),
            "skipped": [sample.broken for sample in samples if sample.broken is not None],
            "inputs": inputs,
        }


def init_worker(worker_id: int) -> None:
    """Keep a worker to one thread: the workers are the parallelism."""
    torch.set_num_threads(1)
    # The tokenizers library warns about, and disables, its thread pool in forked processes.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
