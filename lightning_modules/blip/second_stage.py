"""BLIP's second stage: how well the best of a search match, text and image read together (ITM).

Li et al., arXiv 2201.12086, section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cirlab.encoders.blip.matcher import BlipMatcher
from cirlab.encoders.dual.collate import ImageReader
from cirlab.errors import UserError
from cirlab.records import Caption, Image, Item, Query
from lightning_modules.blip.tokens import rows_of, trimmed

#: Pairs that are matched at once.
PAIRS = 256


def match_logits(
    encoder: BlipMatcher,
    reader: ImageReader,
    queries: Sequence[Query],
    items: Sequence[Item],
    pairs: torch.Tensor,
) -> torch.Tensor:
    """Logits of "they belong together", (P,), float32, on the CPU.

    Args:
        encoder: reads text and image together.
        reader: of pixels, or of hidden images that were kept.
        queries: texts, where the items are images; else images.
        items: images or captions; each image is read once.
        pairs: positions in `queries` and in `items`. Shape (P, 2), int64.

    Raises:
        UserError: queries and items are both images, or both texts.
    """
    asked, found = pairs.unbind(dim=1)
    if isinstance(items[0], Image):
        images = [item for item in items if isinstance(item, Image)]
        words, seen = [query.text for query in queries], found
        said = asked
    else:
        images = [query.image for query in queries if query.image is not None]
        words = [item.text for item in items if isinstance(item, Caption)]
        seen, said = asked, found
    _check_matchable(queries, words, images, len(items))
    device = encoder.log_temperature.device
    hidden = encoder.hidden_of({key: value.to(device) for key, value in reader(images).items()})
    read = encoder.processor.tokenize(words)
    tokens = {key: value.to(device) for key, value in read.items()}
    logits = [
        encoder.match(trimmed(rows_of(tokens, text)), hidden[image])
        for text, image in zip(said.split(PAIRS), seen.split(PAIRS), strict=True)
    ]
    return torch.cat(logits)[:, 1].float().cpu()


def _check_matchable(
    queries: Sequence[Query], words: Sequence[str], images: Sequence[Image], items: int
) -> None:
    texts = len(words) == items or all(words)
    if not texts or len(images) not in (len(queries), items):
        raise UserError(
            f"the second stage reads a text together with an image, but query {queries[0].id!r} or "
            "another one of its benchmark and what it asks for are both images or both texts; set "
            "rerank_depth: null there"
        )
