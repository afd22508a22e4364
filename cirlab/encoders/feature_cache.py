"""Features of a frozen backbone, computed once and memory-mapped afterwards.

A folder holds the features of one backbone and one preprocessing, whatever run asked for them; a
change of either is another folder. Each run adds a part with the images that were not there yet: a
float32 matrix and the names of its rows.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from cirlab import distributed
from cirlab.records import FileImage, Image

log = logging.getLogger(__name__)


class FeatureCache:
    """Features whose rows are known by image.

    Picklable: loader workers map the files, they do not copy them.

    Args:
        parts: the .npy files, each (N, F) float32.
        rows: for each image's name, the number of its part and its row there.
    """

    def __init__(self, parts: Sequence[Path], rows: Mapping[str, tuple[int, int]]) -> None:
        self.parts = list(parts)
        self._rows = dict(rows)
        self._features: list[np.ndarray] | None = None

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
            self._features = [np.load(path, mmap_mode="r") for path in self.parts]
        places = [self._rows[_name(image)] for image in images]
        return torch.from_numpy(np.stack([self._features[part][row] for part, row in places]))


def cached_features(
    folder: Path,
    identity: str,
    images: Sequence[Image],
    compute: Callable[[Sequence[Image]], Iterable[torch.Tensor]],
) -> FeatureCache:
    """The cache of these images under this identity; what it lacks is computed.

    Features that runs over other images have left under the same identity are used. Processes of
    one run share the work. A part that is being written bears another name until it is whole: a
    kill leaves no half-written part, and two runs that compute one at once do the work twice and
    agree.

    Args:
        folder: where caches lie.
        identity: whatever decides the features besides the images (weights, preprocessing).
        images: all that the run needs, the same on every process.
        compute: yields features of the images it is given in batches, each (B, F).
    """
    store = folder / f"features_{_digest([identity])}"
    # One process may see what another has begun to write: the first decides for all.
    lacking = distributed.broadcast_object(_lacking(store, images))
    if lacking:
        log.info("computing features of %d of %d images into %s", len(lacking), len(images), store)
        share = lacking[distributed.rank() :: distributed.world_size()]
        distributed.together(lambda: _compute(store, [images[i] for i in share], compute))
        # On a disk that not all machines share, what others computed is computed here, too.
        _compute(store, [images[i] for i in _lacking(store, images)], compute)
    known = _stored(store)
    parts = sorted({path for path, _ in known.values()})
    number = {path: i for i, path in enumerate(parts)}
    wanted = {_name(image) for image in images}
    rows = {name: (number[path], row) for name, (path, row) in known.items() if name in wanted}
    return FeatureCache(parts, rows)


def _lacking(store: Path, images: Sequence[Image]) -> list[int]:
    """Positions of the images whose features are not there."""
    known = _stored(store)
    return [row for row, image in enumerate(images) if _name(image) not in known]


def _compute(
    store: Path,
    images: Sequence[Image],
    compute: Callable[[Sequence[Image]], Iterable[torch.Tensor]],
) -> None:
    if images:
        names = [_name(image) for image in images]
        _write(store / f"{_digest(names)}.npy", names, compute(images))


def _stored(store: Path) -> dict[str, tuple[Path, int]]:
    """Where the features of every image lie: file and row, by the image's name."""
    known: dict[str, tuple[Path, int]] = {}
    for listing in sorted(store.glob("*.txt")):
        names = listing.read_text(encoding="utf-8").split("\n")
        known |= {name: (listing.with_suffix(".npy"), row) for row, name in enumerate(names)}
    return known


def _write(path: Path, names: Sequence[str], batches: Iterable[torch.Tensor]) -> None:
    """One part: the matrix, then the list of names that makes it count."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    matrix: np.memmap | None = None
    row = 0
    try:
        for batch in batches:
            if matrix is None:
                matrix = np.lib.format.open_memmap(
                    unfinished, mode="w+", dtype=np.float32, shape=(len(names), batch.shape[1])
                )
            matrix[row : row + len(batch)] = batch.float().cpu().numpy()
            row += len(batch)
        if matrix is None or row != len(names):
            raise ValueError(f"{row} features were computed for {len(names)} images")
        matrix.flush()
        unfinished.replace(path)
        unfinished.write_text("\n".join(names), encoding="utf-8")
        unfinished.replace(path.with_suffix(".txt"))
    finally:
        unfinished.unlink(missing_ok=True)


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _name(image: Image) -> str:
    """Tells images apart between datasets, whose ids may clash or differ for one file.

    A file that has been replaced is another image, and so is each part of a file.
    """
    if not isinstance(image, FileImage):
        return image.id
    stat = image.path.stat()
    whole = f"{image.path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    return f"{whole} {image.part}" if image.part else whole
