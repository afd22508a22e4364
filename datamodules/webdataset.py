"""Image-caption pairs in img2dataset's webdataset shards: CC3M, LAION and the like."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from cirlab.benchmarks.base import Benchmark
from cirlab.errors import UserError
from cirlab.reading.jsonl import Row
from cirlab.reading.tars import TarIndex
from cirlab.records import EncodedImage, Pair, SampleKey
from datamodules.base import RetrievalData

log = logging.getLogger(__name__)

IMAGE_TYPES = (b"jpg", b"jpeg", b"png", b"webp")


class WebDatasetData(RetrievalData):
    """Shards `00000.tar`, ... with one image, .txt and .json for each sample.

    The headers of all shards are read once (`cirlab.reading.tars` says why), a progress bar shows
    it; later runs find them in the cache. Samples lie anywhere on the disk in training order, so
    shards belong on a local SSD. What img2dataset failed to download has no image in a shard and
    is left out, as is an empty caption; how many downloads had failed is logged from the
    `_stats.json` files.

    Args:
        root: folder of the shards.
        batch_size: training samples per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        num_workers: loader processes per training process; 0 loads in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the order of samples.
        caption: a field of the .json that holds the caption; null reads the .txt.
        index_cache: folder for the offsets within the shards; null keeps them in
            `<root>/.index`.
        on_error: a broken image ends the run (raise) or is left out, counted and named (skip).
    """

    train_record = Pair

    def __init__(
        self,
        root: str,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int = 4,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
        caption: str | None = None,
        index_cache: str | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, num_workers, benchmarks, seed, on_error=on_error
        )
        self.root = root
        self.caption = caption
        self.index_cache = index_cache
        self._dataset: ShardPairs | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.train_dataset()

    def train_dataset(self) -> ShardPairs:
        if self._dataset is None:
            shards = find_shards(self.root)
            cache = Path(self.index_cache) if self.index_cache else Path(self.root) / ".index"
            self._dataset = ShardPairs(TarIndex(shards, cache=cache), caption=self.caption)
            failed = failed_downloads(shards)
            log.info(
                "%d pairs in %d shards of %s; %d downloads had failed",
                len(self._dataset),
                len(shards),
                self.root,
                failed,
            )
        return self._dataset


def find_shards(root: str) -> list[Path]:
    """The .tar files of a folder, by name.

    Raises:
        UserError: there are none, or no such folder.
    """
    folder = Path(root)
    if not root.strip() or not folder.is_dir():
        raise UserError(f"the data root {root!r} is not a folder; give the folder of the shards")
    if not (shards := sorted(folder.glob("*.tar"))):
        raise UserError(f"there is no .tar file in {root}; give the folder of the shards")
    return shards


def failed_downloads(shards: Sequence[Path]) -> int:
    """How many samples img2dataset's statistics count as failed; 0 where it left none."""
    failed = 0
    for shard in shards:
        path = shard.with_name(f"{shard.stem}_stats.json")
        if path.is_file():
            stats = json.loads(path.read_text(encoding="utf-8"))
            failed += stats.get("count", 0) - stats.get("successes", 0)
    return failed


class ShardPairs:
    """The pairs of some shards, by position.

    Args:
        index: of the shards.
        caption: a field of the .json, or None for the .txt.

    Raises:
        UserError: no sample has both an image and a caption.
    """

    def __init__(self, index: TarIndex, *, caption: str | None) -> None:
        self.index = index
        self.caption = caption
        self.members = _samples(index, "txt" if caption is None else "json")
        if not len(self.members):
            wanted = "a .txt" if caption is None else "a .json"
            raise UserError(
                f"no sample of {len(index.tars)} shard(s), the first {index.tars[0]}, has an "
                f"image and {wanted} beside it; check data.init_args.caption and the shards"
            )

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, key: SampleKey) -> Pair:
        image, words = map(int, self.members[key.index])
        shard = self.index.tars[self.index.places["tar"][image]].stem
        name = f"{shard}/{self.index.name(image)}"
        return Pair(
            image=EncodedImage(id=name, data=self.index.read(image)),
            captions=(self._caption(words, shard),),
        )

    def _caption(self, member: int, shard: str) -> str:
        text = self.index.read(member).decode("utf-8", errors="replace")
        if self.caption is None:
            return text.strip()
        where = f"shard {shard}, {self.index.name(member)}"
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not valid JSON ({error})") from error
        return Row(fields, where).text(self.caption)


def _samples(index: TarIndex, words: str) -> np.ndarray:
    """Members that make a sample: the image and its words. Shape (N, 2), int64."""
    firsts = np.searchsorted(index.places["tar"], np.arange(len(index.tars) + 1))
    parts = [
        _shard_samples(index.names[start:stop].tolist(), int(start), words.encode())
        for start, stop in pairwise(firsts)
    ]
    samples = np.concatenate(parts)
    # img2dataset writes an empty .txt where the source had no caption.
    return samples[index.places["size"][samples[:, 1]] > 0]


def _shard_samples(names: Sequence[bytes], start: int, words: bytes) -> np.ndarray:
    groups: dict[bytes, dict[bytes, int]] = {}
    for member, name in enumerate(names, start=start):
        folder, slash, file = name.rpartition(b"/")
        key, _, kind = file.partition(b".")
        groups.setdefault(folder + slash + key, {})[kind.lower()] = member
    found = [
        (image, group[words])
        for group in groups.values()
        if words in group and (image := _image(group)) is not None
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _image(group: dict[bytes, int]) -> int | None:
    return next((group[kind] for kind in IMAGE_TYPES if kind in group), None)
