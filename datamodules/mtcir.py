"""MTCIR: triplets with several short modification texts (CoLLM, arXiv 2503.19910, section 4)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from cirlab.benchmarks.base import Benchmark
from cirlab.errors import UserError
from cirlab.reading.jsonl import JoinedLines, JsonLines, Row
from cirlab.reading.tars import TarIndex
from cirlab.records import EncodedImage, FileImage, Image, SampleKey, Triplet
from datamodules.base import RetrievalData

log = logging.getLogger(__name__)

#: Rows parsed when the run starts, so that wrong keys are told at once.
TRIED_ROWS = 1000


@dataclass
class MtcirKeys:
    """Names of the fields of a line.

    The published file's schema could not be read when this was written; set what it has.

    Attributes:
        reference: path of the reference image.
        target: path of the target image.
        texts: list of modification texts, or of objects that hold one each.
        text: within such an object, the text.
    """

    reference: str = "image"
    target: str = "target_image"
    texts: str = "modifications"
    text: str = "text"


class MtcirData(RetrievalData):
    """JSON Lines of reference, target and several texts; images in a folder or in tar archives.

    All texts of a pair go into the record; how many of them make a query is the method's choice.
    Lines are parsed when they are drawn (the whole set has 3.4 million), the first thousand also
    when the run starts.

    Args:
        annotations: a JSON Lines file, or several whose lines are joined.
        images: a folder, or a list of uncompressed tar archives.
        batch_size: training samples per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        num_workers: loader processes per training process; 0 loads in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the order of samples.
        keys: names of the fields.
        index_cache: folder for where lines begin and members of tar archives lie, which all
            processes then share; null looks through the files at each start.
        on_error: a missing or broken image ends the run (raise) or is left out, counted and
            named (skip).
    """

    train_record = Triplet

    def __init__(
        self,
        annotations: str | list[str],
        images: str | list[str],
        batch_size: int,
        eval_batch_size: int,
        num_workers: int = 4,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
        keys: MtcirKeys | None = None,
        index_cache: str | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, num_workers, benchmarks, seed, on_error=on_error
        )
        self.annotations = [annotations] if isinstance(annotations, str) else list(annotations)
        self.images = images
        self.keys = keys or MtcirKeys()
        self.index_cache = index_cache
        self._dataset: MtcirTriplets | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            log.info("%d training triplets", len(self.train_dataset()))

    def train_dataset(self) -> MtcirTriplets:
        if self._dataset is None:
            cache = Path(self.index_cache) if self.index_cache else None
            store = _store(self.images, cache)
            files = [JsonLines(Path(path), cache=cache) for path in self.annotations]
            dataset = MtcirTriplets(JoinedLines(files), store, self.keys)
            for index in range(min(TRIED_ROWS, len(dataset))):
                triplet = dataset[SampleKey(0, index)]
                if self.on_error == "raise":
                    store.require(triplet.reference.id)
                    store.require(triplet.target.id)
            self._dataset = dataset
        return self._dataset


class ImageStore(Protocol):
    """Where images lie."""

    def image(self, path: str) -> Image:
        """The image with this path; whether it exists shows when it is loaded."""

    def require(self, path: str) -> None:
        """Raise a `UserError` if there is no such image."""


class FolderStore:
    """Images as files below a folder.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        if not folder.strip() or not self.folder.is_dir():
            raise UserError(f"the image folder {folder!r} does not exist; correct the path")

    def image(self, path: str) -> Image:
        return FileImage(id=path, path=self.folder / path)

    def require(self, path: str) -> None:
        if not (self.folder / path).is_file():
            raise UserError(f"there is no image {self.folder / path}; add it, or correct the path")


class TarStore:
    """Images as members of tar archives, found by their path within."""

    def __init__(self, index: TarIndex) -> None:
        self.index = index
        self._order = np.argsort(index.names, kind="stable")
        self._sorted = index.names[self._order]

    def image(self, path: str) -> Image:
        member = self._find(path)
        # An empty file does not decode, so a missing image is skipped or told as a broken one.
        return EncodedImage(id=path, data=b"" if member is None else self.index.read(member))

    def require(self, path: str) -> None:
        if self._find(path) is None:
            raise UserError(
                f"there is no image {path} in {len(self.index.tars)} archive(s), the first "
                f"{self.index.tars[0]}; add it, or correct data.init_args.images"
            )

    def _find(self, path: str) -> int | None:
        name = path.encode("utf-8")
        at = int(np.searchsorted(self._sorted, name))
        if at == len(self._sorted) or self._sorted[at] != name:
            return None
        return int(self._order[at])


def _store(images: str | Sequence[str], cache: Path | None) -> ImageStore:
    if isinstance(images, str):
        return FolderStore(images)
    if not images:
        raise UserError("data.init_args.images is an empty list; give archives or a folder")
    return TarStore(TarIndex([Path(tar) for tar in images], cache=cache))


class MtcirTriplets:
    """Triplets by position.

    Raises:
        UserError: there is no line.
    """

    def __init__(self, rows: JoinedLines, store: ImageStore, keys: MtcirKeys) -> None:
        if not len(rows):
            raise UserError("data.init_args.annotations hold no line; give at least one triplet")
        self.rows = rows
        self.store = store
        self.keys = keys

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey) -> Triplet:
        row = self.rows[key.index]
        return Triplet(
            reference=self.store.image(row.text(self.keys.reference)),
            texts=self._texts(row),
            target=self.store.image(row.text(self.keys.target)),
        )

    def _texts(self, row: Row) -> tuple[str, ...]:
        values = row.get(self.keys.texts)
        if isinstance(values, list) and any(isinstance(value, dict) for value in values):
            return tuple(part.text(self.keys.text) for part in row.objects(self.keys.texts))
        return row.texts(self.keys.texts)
