"""Features of images, computed once and memory-mapped afterwards.

A folder holds the features of one encoder in one state, whatever run asked for them; another state,
preprocessing or prompt is another folder. Each run adds a part with the images that were not there
yet: a matrix and the names of its rows. A name tells which image it is and in which state
(`cirlab.encoders.image_names`); files are asked of the file system when the run starts, and images
are known by their paths from then on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch

from cirlab import distributed
from cirlab.encoders.image_names import Place, image_names, place
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file
from cirlab.records import Image

log = logging.getLogger(__name__)

#: Seconds after the last write to an unfinished file, from which on nobody will finish it.
ABANDONED = 24 * 3600


class FeatureCache:
    """Features whose rows are known by image.

    Picklable: loader workers map the files, they do not copy them.

    Args:
        parts: the .npy files, each (N, F), or (N, ...) where an image has more than a vector.
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
        """Features of the images, (B, F) or (B, ...), in the precision in which they were kept.

        Raises:
            KeyError: an image is not in the cache.
        """
        return self.at([place(image) for image in images])

    def at(self, places: Sequence[Place]) -> torch.Tensor:
        """The same for images that are known by their places."""
        if self._features is None:
            self._features = [np.load(path, mmap_mode="r") for path in self.parts]
        found = [self._rows[at] for at in places]
        return torch.from_numpy(np.stack([self._features[part][row] for part, row in found]))


def cached_features(
    folder: Path,
    identity: str,
    images: Sequence[Image],
    compute: Callable[[Sequence[Image]], Iterable[torch.Tensor]],
    dtype: torch.dtype = torch.float32,
) -> FeatureCache:
    """The cache of these images under this identity; what it lacks is computed.

    See `cached_views`, of which this is the case of one view.

    Args:
        folder: where caches lie.
        identity: whatever decides the features besides the images (weights, preprocessing).
        images: all that the run needs, the same on every process.
        compute: yields features of the images it is given in batches, each (B, F) or (B, ...).
        dtype: in which they are kept.
    """

    def one_view(images: Sequence[Image], lacking: torch.Tensor) -> Iterator[torch.Tensor]:
        return (batch[None] for batch in compute(images))

    needed = torch.ones(1, len(images), dtype=torch.bool)
    return cached_views(folder, [identity], images, needed, one_view, dtype)[0]


def cached_views(
    folder: Path,
    identities: Sequence[str],
    images: Sequence[Image],
    needed: torch.Tensor,
    compute: Callable[[Sequence[Image], torch.Tensor], Iterable[torch.Tensor]],
    dtype: torch.dtype = torch.float32,
) -> list[FeatureCache]:
    """A cache for each of V views of images; what they lack is computed, in one pass for all.

    Features that runs over other images have left under the same identity are used. Processes of
    one run share the work. A part that is being written bears another name until it is whole: a
    kill leaves no half-written part, and two runs that compute one at once do the work twice and
    agree.

    Args:
        folder: where caches lie.
        identities: whatever decides the features of each view besides the images (weights,
            preprocessing, prompt).
        images: N that the run needs, the same on every process.
        needed: of which images each view is needed. Shape (V, N), bool.
        compute: is given some images and of which of them each view lacks, (V, M); yields features
            in batches, each (V, B, F), of which only what lacks is read.
        dtype: in which they are kept.

    Raises:
        UserError: on every process, if a file is missing, or on one `compute` refuses an image or
            yields what is not finite, or has no room on its disk.
    """
    stores = [folder / f"features_{_digest([identity])}" for identity in identities]
    names = distributed.together(lambda: image_names(images))

    def add(lacking: torch.Tensor) -> None:
        rows = lacking.any(dim=0).nonzero().flatten().tolist()
        if rows:
            found = compute([images[row] for row in rows], lacking[:, rows])
            _write(stores, [names[row] for row in rows], lacking[:, rows], found, dtype)

    known = [_stored(store) for store in stores]
    # One process may see what another has begun to write: the first decides for all.
    lacking = distributed.broadcast_object(_lacking(names, known, needed))
    rows = lacking.any(dim=0).nonzero().flatten()
    if len(rows):
        log.info("computing features of %d of %d images into %s", len(rows), len(images), folder)
        share = torch.zeros_like(lacking)
        own_rows = rows[distributed.rank() :: distributed.world_size()]
        share[:, own_rows] = lacking[:, own_rows]
        distributed.together(lambda: add(share))
        known = [_stored(store) for store in stores]
    # On a disk that not all machines share, what others computed is computed here, too.
    own = _lacking(names, known, needed)
    distributed.together(lambda: add(own))
    if own.any():
        known = [_stored(store) for store in stores]
    return [_cache(images, names, *view) for view in zip(known, needed, strict=True)]


def _cache(
    images: Sequence[Image],
    names: Sequence[str],
    known: Mapping[str, tuple[Path, int]],
    needed: torch.Tensor,
) -> FeatureCache:
    """Of the images that are needed, (N,)."""
    rows = needed.nonzero().flatten().tolist()
    found = {place(images[row]): known[names[row]] for row in rows}
    parts = sorted({path for path, _ in found.values()})
    number = {path: i for i, path in enumerate(parts)}
    return FeatureCache(parts, {at: (number[path], row) for at, (path, row) in found.items()})


def _lacking(
    names: Sequence[str], known: Sequence[Collection[str]], needed: torch.Tensor
) -> torch.Tensor:
    """What is needed and not known, of each name at its first place. Shape (V, N), bool."""
    lacking = torch.zeros_like(needed)
    for view, (there, wanted) in enumerate(zip(known, needed, strict=True)):
        rows = wanted.nonzero().flatten().tolist()
        # Written backwards, the first place of a name is the one that stays.
        first = {names[row]: row for row in reversed(rows)}
        lacking[view, [row for name, row in first.items() if name not in there]] = True
    return lacking


def _stored(store: Path) -> dict[str, tuple[Path, int]]:
    """Where the features of every image lie: file and row, by the image's name."""
    known: dict[str, tuple[Path, int]] = {}
    for listing in sorted(store.glob("*.json")):
        names = json.loads(listing.read_text(encoding="utf-8"))
        part = listing.with_suffix(".npy")
        known |= {name: (part, row) for row, name in enumerate(names)}
    return known


def _write(
    stores: Sequence[Path],
    names: Sequence[str],
    lacking: torch.Tensor,
    batches: Iterable[torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """One part of each view that lacks any: the matrix, then the list of names that makes it count.

    Args:
        stores: of the V views.
        names: of N images.
        lacking: shape (V, N), bool.
        batches: features of all N in their order, each (V, B, F) or (V, B, ...).
        dtype: in which they are written.
    """
    views = lacking.any(dim=1).nonzero().flatten().tolist()
    chosen = {view: [names[row] for row in lacking[view].nonzero().flatten()] for view in views}
    paths = {view: stores[view] / f"{_digest(chosen[view])}.npy" for view in views}
    for view in views:
        _clear(stores[view])
    with ExitStack() as unfinished:
        files = {view: unfinished.enter_context(whole_file(paths[view])) for view in views}
        matrices: dict[int, np.memmap] = {}
        start, filled = 0, dict.fromkeys(views, 0)
        for batch in batches:
            end = start + batch.shape[1]
            for view in views:
                found = batch[view][lacking[view, start:end].to(batch.device)]
                rows = found.to(dtype).cpu().numpy()
                _check_finite(rows, chosen[view][filled[view] :])
                if view not in matrices:
                    shape = (len(chosen[view]), *batch.shape[2:])
                    matrices[view] = _matrix(files[view], shape, rows.dtype)
                matrices[view][filled[view] : filled[view] + len(rows)] = rows
                filled[view] += len(rows)
            start = end
        if start != len(names):
            raise ValueError(f"{start} features were computed for {len(names)} images")
        for matrix in matrices.values():
            matrix.flush()
    for view in views:
        with whole_file(paths[view].with_suffix(".json")) as listing:
            listing.write_text(json.dumps(chosen[view]), encoding="utf-8")


def _check_finite(rows: np.ndarray, names: Sequence[str]) -> None:
    """Refuse to keep what no ranking could use, at the first of them, known by name."""
    broken = ~np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
    if broken.any():
        raise UserError(
            f"the features of image {names[int(broken.argmax())]} are not all finite, so that "
            "nothing of them is kept; the weights or the precision of the encoder are at fault"
        )


def _matrix(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """A file of zeros whose place on the disk is taken.

    A full disk is found here, and not by a write into the mapped file, which would end the process.

    Raises:
        UserError: the disk has no room.
    """
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise UserError(
            f"{shape[0]} vectors of {math.prod(shape[1:])} values take "
            f"{matrix.nbytes / (1 << 20):.3g} MiB, for which {path.parent} has no room "
            f"({error.strerror}); make room, or choose another "
            "folder"
        ) from error
    return matrix


def _clear(store: Path) -> None:
    """Delete what a kill left unfinished a day ago or earlier; nobody writes for so long."""
    for unfinished in store.glob("*.unfinished"):
        # Another run may be clearing, too.
        with suppress(FileNotFoundError):
            if time.time() - unfinished.stat().st_mtime > ABANDONED:
                unfinished.unlink()


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
