"""Features of a frozen backbone, computed once and memory-mapped afterwards.

One file holds one float32 matrix; its name carries the identity of the backbone, its
preprocessing and the images, so that a change of any of them is another file.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from cirlab.records import FileImage, Image

log = logging.getLogger(__name__)


class FeatureCache:
    """A matrix of features whose rows are known by image.

    Picklable: loader workers map the file, they do not copy it.

    Args:
        path: the .npy file, (N, F) float32.
        images: the image of every row.
    """

    def __init__(self, path: Path, images: Sequence[Image]) -> None:
        self.path = path
        self._rows = {_name(image): row for row, image in enumerate(images)}
        self._features: np.ndarray | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_features": None}

    def __contains__(self, image: Image) -> bool:
        return _name(image) in self._rows

    def __call__(self, images: Sequence[Image]) -> torch.Tensor:
        """Features of the images, (B, F) float32.

        Raises:
            KeyError: an image is not in the cache.
        """
        if self._features is None:
            self._features = np.load(self.path, mmap_mode="r")
        rows = [self._rows[_name(image)] for image in images]
        return torch.from_numpy(np.asarray(self._features[rows], dtype=np.float32))


def cached_features(
    folder: Path,
    identity: str,
    images: Sequence[Image],
    compute: Callable[[], Iterable[torch.Tensor]],
) -> FeatureCache:
    """The cache of these images under this identity, computed if it is not there.

    A cache that is being written bears another name until it is whole: a kill leaves no
    half-written cache, and two processes that build it at once do the work twice and agree.

    Args:
        folder: where caches lie.
        identity: whatever decides the features besides the images (weights, preprocessing).
        images: in the order of `compute`'s rows.
        compute: yields features in batches, each (B, F).
    """
    digest = hashlib.sha256("\n".join([identity, *map(_name, images)]).encode()).hexdigest()[:16]
    path = folder / f"features_{digest}.npy"
    if not path.is_file():
        log.info("computing features of %d images into %s", len(images), path)
        _write(path, len(images), compute())
    return FeatureCache(path, images)


def _write(path: Path, count: int, batches: Iterable[torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    matrix: np.memmap | None = None
    row = 0
    try:
        for batch in batches:
            if matrix is None:
                matrix = np.lib.format.open_memmap(
                    unfinished, mode="w+", dtype=np.float32, shape=(count, batch.shape[1])
                )
            matrix[row : row + len(batch)] = batch.float().cpu().numpy()
            row += len(batch)
        if matrix is None or row != count:
            raise ValueError(f"{row} features were computed for {count} images")
        matrix.flush()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _name(image: Image) -> str:
    """Tells images apart between datasets, whose ids may clash or differ for one file.

    A file that has been replaced is another image.
    """
    if not isinstance(image, FileImage):
        return image.id
    stat = image.path.stat()
    return f"{image.path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
