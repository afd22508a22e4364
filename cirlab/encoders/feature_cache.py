"""Features of a frozen backbone, computed once and memory-mapped afterwards.

A folder holds the features of one backbone and one preprocessing, whatever run asked for them; a
change of either is another folder. Each run adds a part with the images that were not there yet: a
float32 matrix and the names of its rows. A name tells which file an image is and in which state; it
is asked of the file system when the run starts, and images are known by their paths from then on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from cirlab import distributed
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file
from cirlab.records import FileImage, Image

log = logging.getLogger(__name__)

#: What tells the images of a run apart: a file's path and what is shown of it, or an id.
Place = tuple[str, str] | str


class FeatureCache:
    """Features whose rows are known by image.

    Picklable: loader workers map the files, they do not copy them.

    Args:
        parts: the .npy files, each (N, F) float32.
        rows: for each image, the number of its part and its row there.
    """

    def __init__(self, parts: Sequence[Path], rows: Mapping[Place, tuple[int, int]]) -> None:
        self.parts = list(parts)
        self._rows = dict(rows)
        self._features: list[np.ndarray] | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_features": None}

    def __contains__(self, image: Image) -> bool:
        return place(image) in self._rows

    def __call__(self, images: Sequence[Image]) -> torch.Tensor:
        """Features of the images, (B, F) float32.

        Raises:
            KeyError: an image is not in the cache.
        """
        if self._features is None:
            self._features = [np.load(path, mmap_mode="r") for path in self.parts]
        found = [self._rows[place(image)] for image in images]
        return torch.from_numpy(np.stack([self._features[part][row] for part, row in found]))


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

    Raises:
        UserError: on every process, if a file is missing or `compute` refuses an image on one.
    """
    store = folder / f"features_{_digest([identity])}"
    names = distributed.together(lambda: _names(images))

    def add(numbers: Sequence[int]) -> None:
        if numbers:
            chosen = [names[i] for i in numbers]
            _write(store / f"{_digest(chosen)}.npy", chosen, compute([images[i] for i in numbers]))

    known = _stored(store)
    # One process may see what another has begun to write: the first decides for all.
    lacking = distributed.broadcast_object(_lacking(names, known))
    if lacking:
        log.info("computing features of %d of %d images into %s", len(lacking), len(images), store)
        share = lacking[distributed.rank() :: distributed.world_size()]
        distributed.together(lambda: add(share))
        known = _stored(store)
    # On a disk that not all machines share, what others computed is computed here, too.
    own = _lacking(names, known)
    distributed.together(lambda: add(own))
    if own:
        known = _stored(store)
    return _cache(images, [known[name] for name in names])


def place(image: Image) -> Place:
    """Where an image is from, which within a run tells it apart; its id need not."""
    return (str(image.path), image.part) if isinstance(image, FileImage) else image.id


def _cache(images: Sequence[Image], found: Sequence[tuple[Path, int]]) -> FeatureCache:
    parts = sorted({path for path, _ in found})
    number = {path: i for i, path in enumerate(parts)}
    rows = {
        place(image): (number[path], row) for image, (path, row) in zip(images, found, strict=True)
    }
    return FeatureCache(parts, rows)


def _lacking(names: Sequence[str], known: Collection[str]) -> list[int]:
    """Positions of the names that are not known, of each its first."""
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if name not in known:
            first.setdefault(name, number)
    return list(first.values())


def _stored(store: Path) -> dict[str, tuple[Path, int]]:
    """Where the features of every image lie: file and row, by the image's name."""
    known: dict[str, tuple[Path, int]] = {}
    for listing in sorted(store.glob("*.txt")):
        names = listing.read_text(encoding="utf-8").split("\n")
        part = listing.with_suffix(".npy")
        known |= {name: (part, row) for row, name in enumerate(names)}
    return known


def _write(path: Path, names: Sequence[str], batches: Iterable[torch.Tensor]) -> None:
    """One part: the matrix, then the list of names that makes it count."""
    with whole_file(path) as unfinished:
        matrix: np.memmap | None = None
        row = 0
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
    with whole_file(path.with_suffix(".txt")) as unfinished:
        unfinished.write_text("\n".join(names), encoding="utf-8")


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _names(images: Iterable[Image]) -> list[str]:
    """Tell images apart between runs and datasets, whose ids may clash or differ for one file.

    A file that has been replaced is another image, and so is each part of a file.

    Raises:
        UserError: there is no such file.
    """
    # Of thousands of files in one folder, only the files are asked for.
    resolved = cache(Path.resolve)
    state = cache(lambda path: _state(path, resolved))

    def name(image: Image) -> str:
        if not isinstance(image, FileImage):
            return image.id
        try:
            whole = state(image.path)
        except OSError as error:
            raise UserError(f"image {image.id!r} cannot be read: {error}") from error
        return f"{whole} {image.part}" if image.part else whole

    return [name(image) for image in images]


def _state(path: Path, resolved: Callable[[Path], Path]) -> str:
    """Where a file is, its size and when it was changed."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return _described(path.resolve(), path.stat())
    return _described(resolved(path.parent) / path.name, found)


def _described(path: Path, found: os.stat_result) -> str:
    return f"{path} {found.st_size} {found.st_mtime_ns}"
