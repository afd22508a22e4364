"""BLIP's losses: contrast (ITC), matching (ITM) and describing (LM).

Li et al., arXiv 2201.12086, section 3.2; the contrast is that of ALBEF (arXiv 2107.07651).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from cirlab.distributed import all_gather_object, gather, gather_with_grad
from cirlab.encoders.blip.matcher import BlipMatcher, hidden_images, image_vectors, text_vectors
from cirlab.matching import hard_negatives
from cirlab.momentum import PairQueue, Vectors, momentum_contrast
from lightning_modules.blip.tokens import Tokens, rows_of, widened
from lightning_modules.learner import Inputs


@dataclass(frozen=True)
class ReadPairs:
    """Images and their texts as the encoder has read them, row by row.

    Attributes:
        vectors: unit vectors of both. Shape (B, D) each.
        hidden: class token and patches of the images, (B, N, H); None where only vectors are kept
            of them.
        tokens: of the texts. Shape (B, L) each.
        ids: of the images. Shape (B,), int64.
    """

    vectors: Vectors
    hidden: torch.Tensor | None
    tokens: Tokens
    ids: torch.Tensor

    @property
    def patches(self) -> torch.Tensor:
        """`hidden`, for losses that read text and image together."""
        assert self.hidden is not None, "only vectors are kept of these images"
        return self.hidden

    def of_all_processes(self, group: dist.ProcessGroup | None) -> ReadPairs:
        """With those of the other processes, in rank order, texts padded to one length."""
        width = max(all_gather_object(self.tokens["input_ids"].shape[1], group))
        padded = widened(self.tokens, width)
        return ReadPairs(
            Vectors(gather(self.vectors.images, group), gather(self.vectors.texts, group)),
            gather_with_grad(self.patches, group),
            {key: gather(value, group) for key, value in padded.items()},
            gather(self.ids, group),
        )


def contrast_loss(
    encoder: BlipMatcher,
    pairs: ReadPairs,
    slow: Vectors,
    queue: PairQueue,
    *,
    alpha: float,
    group: dist.ProcessGroup | None,
) -> torch.Tensor:
    """ITC (equation 1 of ALBEF, with soft targets); the slow vectors are pushed to the queue."""
    loss, pushed, ids = momentum_contrast(
        pairs.vectors,
        slow,
        pairs.ids,
        queue,
        temperature=encoder.temperature,
        alpha=alpha,
        group=group,
    )
    queue.push(pushed, ids)
    return loss


@torch.no_grad()
def slow_vectors(teacher: Any, batch: Inputs, pairs: ReadPairs) -> Vectors:
    """A batch by the slow encoders.

    Args:
        teacher: the slow encoders (`BlipMatcher.towers`), of images as much as is trained.
        batch: pixels and tokens.
        pairs: the same by the fast ones.
    """
    texts = text_vectors(teacher, batch["text"])
    if "vision_model" in teacher:
        images = image_vectors(teacher, hidden_images(teacher, batch["image"]["pixels"]))
    elif "vision_proj" in teacher:
        images = image_vectors(teacher, pairs.patches)
    else:
        images = pairs.vectors.images.detach()
    return Vectors(images, texts)


def matching_loss(encoder: BlipMatcher, pairs: ReadPairs, candidates: ReadPairs) -> torch.Tensor:
    """ITM: each pair, each text with a wrong image, and each image with a wrong text.

    Args:
        encoder: reads them together.
        pairs: those that belong together.
        candidates: what wrong images and texts are drawn from.
    """
    scale, ids = encoder.temperature.detach(), pairs.ids
    others = candidates.vectors
    images = hard_negatives(pairs.vectors.texts @ others.images.T / scale, ids, candidates.ids)
    texts = hard_negatives(pairs.vectors.images @ others.texts.T / scale, ids, candidates.ids)
    own = widened(pairs.tokens, candidates.tokens["input_ids"].shape[1])
    asked = [own, own, rows_of(candidates.tokens, texts.place)]
    shown = [pairs.patches, candidates.patches[images.place], pairs.patches]
    together = {key: torch.cat([part[key] for part in asked]) for key in own}
    logits = encoder.match(together, torch.cat(shown)).float()
    right = torch.arange(len(logits), device=ids.device) < len(ids)
    counted = torch.cat([torch.ones_like(images.found), images.found, texts.found])
    each = cross_entropy(logits, right.long(), reduction="none")
    return (each * counted).sum() / counted.sum()


def describing_loss(
    encoder: BlipMatcher, pairs: ReadPairs, group: dist.ProcessGroup | None
) -> torch.Tensor:
    """LM: the mean over the words of all captions."""
    total, words = encoder.caption_loss(pairs.tokens, pairs.patches)
    # Processes read different numbers of words; averaged over them, it is the mean over all.
    every = gather(words.reshape(1), group)
    return total / every.float().mean().clamp(min=1)
