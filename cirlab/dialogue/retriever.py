"""A retrieval method and its encoded gallery, searched while people talk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from cirlab.encoders.dual.collate import DualQueryReader, ImageReader
from cirlab.encoders.dual.encoder import DualEncoder
from cirlab.encoders.fingerprint import fingerprint
from cirlab.errors import UserError
from cirlab.records import Image, Query
from cirlab.retrieval.index import GalleryIndex

T = TypeVar("T")


class Method(Protocol):
    """What `lightning_modules.base.RetrievalModule` promises, as far as it is needed here."""

    def image_collator(self) -> Callable[[Sequence[Image]], Mapping[str, Any]]:
        """Images to the inputs of `encode_images`."""
        ...

    def query_collator(self) -> Callable[[Sequence[Query]], Mapping[str, Any]]:
        """Queries to the inputs of `encode_queries`."""
        ...

    def encode_images(self, inputs: Mapping[str, Any], prompt: str | None = None) -> torch.Tensor:
        """Unit vectors (B, D)."""
        ...

    def encode_queries(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Unit vectors (B, D)."""
        ...


class GalleryRetriever:
    """Ranks a gallery by a method's vectors; the gallery is encoded once, when this is made.

    Args:
        method: in evaluation mode, with its weights, on its device.
        gallery: images to search.
        identity: what is known of the method beside its weights; None: its class.
        separator: stands between the texts of a dialogue.
        batch_size: images or dialogues encoded at once.
        shown: goes through the batches of the gallery, e.g. to show how far it is.
        vectors: of the gallery, where they are known, (G, D); None encodes it.
        arithmetic: a context in which the method encodes, e.g. a trainer's precision.

    Raises:
        UserError: an image cannot be read, or the gallery is empty.
    """

    def __init__(
        self,
        method: Method,
        gallery: Sequence[Image],
        identity: Mapping[str, Any] | None = None,
        separator: str = ", ",
        batch_size: int = 64,
        shown: Callable[[Sequence[Sequence[Image]]], Iterator[Sequence[Image]]] = iter,
        vectors: torch.Tensor | None = None,
        arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; set it to 1 or more")
        self.method, self.separator, self.batch_size = method, separator, batch_size
        self._identity, self._arithmetic = identity, arithmetic
        if vectors is None:
            batches = shown(_batches(gallery, batch_size))
            found = [encode_batch(method, batch, arithmetic) for batch in batches]
            vectors = torch.cat(found) if found else torch.empty(0, 1)
        self.index = GalleryIndex([image.id for image in gallery], vectors)

    def identity(self) -> dict[str, Any]:
        own = self._identity or {"kind": type(self.method).__name__}
        return {**own, "weights": self._weights(), "separator": self.separator}

    def rank(self, histories: Sequence[Sequence[str]], k: int) -> list[list[str]]:
        queries = [self._query(number, texts) for number, texts in enumerate(histories)]
        if not queries:
            return []
        found = self.index.search(self._vectors(queries), k).positions.tolist()
        return [self._ids(row) for row in found]

    def find(self, texts: Sequence[str], k: int, target: str) -> tuple[list[str], int]:
        """The best images of one dialogue as `rank` gives them, and where a target stands.

        Args:
            texts: what the dialogue began with, and a text for each round.
            k: how many.
            target: an image's id. Its rank counts from 1, ties against it.
        """
        query = self._query(0, texts, (target,))
        ranked = self.index.rank(self._vectors([query]), [query], k)
        return self._ids(ranked.best.positions[0].tolist()), int(ranked.ranks.targets[0, 0])

    def _ids(self, places: Sequence[int]) -> list[str]:
        return [self.index.ids[place] for place in places if place >= 0]

    def _vectors(self, queries: Sequence[Query]) -> torch.Tensor:
        read, encode = self.method.query_collator(), self.method.encode_queries
        batches = _batches(queries, self.batch_size)
        found = [_encoded(self.method, encode, read(each), self._arithmetic) for each in batches]
        return torch.cat(found)

    def _query(self, number: int, texts: Sequence[str], targets: tuple[str, ...] = ()) -> Query:
        text = self.separator.join(texts)
        return Query(id=f"{number}", text=text, targets=targets, rounds=tuple(texts))

    def _weights(self) -> str:
        named = self.method.named_parameters() if isinstance(self.method, nn.Module) else ()
        return fingerprint(named)


def encode_batch(
    method: Method,
    images: Sequence[Image],
    arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> torch.Tensor:
    """Unit vectors of images, (B, D), on the CPU in float32."""
    return _encoded(method, method.encode_images, method.image_collator()(images), arithmetic)


@torch.inference_mode()
def _encoded(
    method: Method,
    encode: Callable[[Mapping[str, Any]], torch.Tensor],
    inputs: Mapping[str, Any],
    arithmetic: Callable[[], AbstractContextManager[Any]],
) -> torch.Tensor:
    """Vectors on the CPU in float32, from inputs that are taken to the method's device."""
    weights = method.parameters() if isinstance(method, nn.Module) else iter(())
    device = next((weight.device for weight in weights), torch.device("cpu"))
    moved = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), inputs)
    with arithmetic():
        return encode(moved).float().cpu()


class DualMethod(nn.Module):
    """A dual encoder as it is, e.g. CLIP zero-shot.

    Args:
        encoder: `cirlab.encoders.dual.loading.load_dual_encoder`.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder = encoder.eval()

    def image_collator(self) -> ImageReader:
        return ImageReader(self.encoder.processor)

    def query_collator(self) -> DualQueryReader:
        return DualQueryReader(self.image_collator())

    def encode_images(self, inputs: Mapping[str, Any], prompt: str | None = None) -> torch.Tensor:
        return self.encoder.embed_images(inputs)

    def encode_queries(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        return self.encoder.query_parts(inputs)["text_only"]


def _batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
