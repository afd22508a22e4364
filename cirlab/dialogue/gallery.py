"""The vectors of a gallery of files, encoded once and kept (`cirlab.encoders.feature_cache`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cirlab.dialogue.retriever import Method, encode_batch
from cirlab.encoders.feature_cache import cached_features
from cirlab.errors import UserError
from cirlab.records import DecodedImage, Image

#: Images whose vectors are kept together: what an interruption loses at most.
KEPT_TOGETHER = 256


@dataclass(frozen=True)
class EncodedGallery:
    """Images that can be ranked.

    Attributes:
        images: those that decode, in the order they came in.
        vectors: of them. Shape (G, D).
        broken: ids of images that do not decode.
    """

    images: tuple[Image, ...]
    vectors: torch.Tensor
    broken: tuple[str, ...]


def encode_gallery(
    method: Method,
    images: Sequence[Image],
    folder: Path,
    identity: str,
    batch_size: int = 32,
    arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
    shown: Callable[[int], object] = lambda done: None,
) -> EncodedGallery:
    """Vectors of images, of which only those are computed that are not kept yet.

    Args:
        method: in evaluation mode, with its weights, on its device.
        images: at least one.
        folder: where caches lie.
        identity: what decides a vector beside the image: weights, settings, precision.
        batch_size: images encoded at once.
        arithmetic: a context in which the method encodes.
        shown: told again and again how many images are done.

    Raises:
        UserError: no image decodes, or a vector is not finite.
    """
    kept: list[Image] = []
    parts: list[torch.Tensor] = []
    broken: list[str] = []
    for start in range(0, len(images), KEPT_TOGETHER):
        part = list(images[start : start + KEPT_TOGETHER])
        encode = _Encoding(method, batch_size, arithmetic, partial(_report, shown, start))
        try:
            cache = cached_features(folder, identity, part, encode)
        except _BrokenError as error:
            broken += [image.id for image in part if image.id in error.ids]
            part = [image for image in part if image.id not in error.ids]
            cache = cached_features(folder, identity, part, encode)
        if part:
            parts.append(cache(part))
            kept += part
        shown(min(start + KEPT_TOGETHER, len(images)))
    if not kept:
        raise UserError(
            f"none of {len(images):,} images decodes, the first is {images[0].id}; give others"
        )
    return EncodedGallery(tuple(kept), torch.cat(parts), tuple(broken))


def _report(shown: Callable[[int], object], start: int, done: int) -> None:
    shown(start + done)


@dataclass
class _Encoding:
    """Encodes the images of one part, and remembers them until all are known to decode.

    Attributes:
        method: as of `encode_gallery`, as are the next two.
        report: told how many images of the part are encoded.
    """

    method: Method
    batch_size: int
    arithmetic: Callable[[], AbstractContextManager[Any]]
    report: Callable[[int], None]
    _known: dict[str, torch.Tensor] = field(default_factory=dict)

    def __call__(self, images: Sequence[Image]) -> Iterator[torch.Tensor]:
        """Yields (B, D).

        Raises:
            _BrokenError: some do not decode. All others are remembered, so that a second call
                without those only hands out.
        """
        lacking = [image for image in images if image.id not in self._known]
        failed: set[str] = set()
        for start in range(0, len(lacking), self.batch_size):
            batch = lacking[start : start + self.batch_size]
            decoded = [image for image in map(_decoded, batch) if image is not None]
            failed |= {image.id for image in batch} - {image.id for image in decoded}
            if decoded:
                vectors = encode_batch(self.method, decoded, self.arithmetic)
                ids = (image.id for image in decoded)
                self._known |= dict(zip(ids, vectors, strict=True))
            self.report(start + len(batch))
        if failed:
            raise _BrokenError(frozenset(failed))
        yield torch.stack([self._known[image.id] for image in images])


def _decoded(image: Image) -> Image | None:
    """The image in memory; None where it does not decode."""
    try:
        return DecodedImage(image.id, image.load())
    except UserError:
        return None


class _BrokenError(Exception):
    """Some images do not decode.

    Args:
        ids: of these images.
    """

    def __init__(self, ids: frozenset[str]) -> None:
        super().__init__(ids)
        self.ids = ids
