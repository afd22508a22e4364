"""Which pairs image-text matching learns from: those that belong together, and hard wrong ones.

BLIP (Li et al., arXiv 2201.12086, section 3.1, after ALBEF, arXiv 2107.07651): for each image a
wrong text, and for each text a wrong image, drawn more often the more similar the vectors are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Drawn(NamedTuple):
    """One negative for each anchor.

    Attributes:
        place: position among the candidates; 0 where there is none. Shape (B,), int64.
        found: whether there is one. Shape (B,), bool.
    """

    place: torch.Tensor
    found: torch.Tensor


def hard_negatives(
    similarities: torch.Tensor, ids: torch.Tensor, candidate_ids: torch.Tensor
) -> Drawn:
    """Draw a negative for each anchor, by the softmax of its similarities.

    A candidate with the anchor's own id is never drawn. An anchor without any other candidate
    (a batch of one image) has none.

    Args:
        similarities: divided by the temperature. Shape (B, M).
        ids: of the anchors' images. Shape (B,), int64.
        candidate_ids: of the candidates' images. Shape (M,), int64.
    """
    same = ids[:, None] == candidate_ids
    found = ~same.all(dim=1)
    # Where all are barred any may be drawn, for a draw there has to be; `found` tells.
    barred = same & found[:, None]
    chances = similarities.detach().float().masked_fill(barred, -torch.inf).softmax(dim=1)
    return Drawn(torch.multinomial(chances, 1).squeeze(1), found)
