"""Contrastive learning against slow copies of the encoders and a queue of what they have said.

He et al. (MoCo, arXiv 1911.05722) keep negatives of many steps in a queue, which only encoders that
change slowly can fill; Li et al. (ALBEF, arXiv 2107.07651; BLIP, arXiv 2201.12086) also take soft
targets from the slow encoders. All parts here are the same on every process: the queues hold what
all processes have pushed, in rank order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from cirlab.distributed import gather
from cirlab.errors import UserError


class Vectors(NamedTuple):
    """Unit vectors of a batch, row by row of images and of their texts, each (B, D)."""

    images: torch.Tensor
    texts: torch.Tensor


def momentum_update(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Move slow weights towards the fast ones: slow = m * slow + (1 - m) * fast.

    Args:
        slow: holds some of the weights of `fast`, under the same names.
        fast: what learns.
        momentum: m, in [0, 1].
    """
    weights = dict(fast.named_parameters())
    with torch.no_grad():
        for name, weight in slow.named_parameters():
            weight.lerp_(weights[name].to(weight.dtype), 1 - momentum)


class PairQueue(nn.Module):
    """The last vectors of images and texts, with the ids of the images.

    BLIP begins with random vectors in it; here a queue that is not yet full has fewer rows.

    Args:
        size: rows.
        dim: dimensions of a vector.

    Raises:
        UserError: the size is below 0.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 0:
            raise UserError(
                f"queue_size is {size}; set it to a number of rows, or to 0 for no queue"
            )
        self.size = size
        self.all_images: torch.Tensor
        self.all_texts: torch.Tensor
        self.all_ids: torch.Tensor
        self.pushed: torch.Tensor
        self.register_buffer("all_images", torch.zeros(size, dim))
        self.register_buffer("all_texts", torch.zeros(size, dim))
        self.register_buffer("all_ids", torch.zeros(size, dtype=torch.long))
        #: Rows that were ever pushed: where the next one goes, and how many there are.
        self.register_buffer("pushed", torch.zeros(1, dtype=torch.long))

    @property
    def vectors(self) -> Vectors:
        """The rows that are filled, each (K, D), K <= size."""
        filled = min(int(self.pushed), self.size)
        return Vectors(self.all_images[:filled], self.all_texts[:filled])

    @property
    def ids(self) -> torch.Tensor:
        """Ids of the images, (K,)."""
        return self.all_ids[: min(int(self.pushed), self.size)]

    def push(self, vectors: Vectors, ids: torch.Tensor) -> None:
        """Put a batch of all processes in the place of the oldest rows."""
        if not self.size:
            return
        count, first = len(ids), int(self.pushed)
        # Of a batch that is longer than the queue its end is kept.
        begin = max(0, count - self.size)
        places = torch.arange(first + begin, first + count, device=ids.device) % self.size
        self.all_images[places] = vectors.images[begin:].to(self.all_images.dtype)
        self.all_texts[places] = vectors.texts[begin:].to(self.all_texts.dtype)
        self.all_ids[places] = ids[begin:]
        self.pushed += count


def soft_targets(similarities: torch.Tensor, positive: torch.Tensor, alpha: float) -> torch.Tensor:
    """Targets between what is known to belong together and what the slow encoders find similar.

    Args:
        similarities: by the slow encoders, divided by the temperature. Shape (B, M).
        positive: pairs with the same image; each row has one at least. Shape (B, M), bool.
        alpha: share of the slow encoders, in [0, 1].

    Returns:
        Rows that sum to one, (B, M).
    """
    known = positive / positive.sum(dim=1, keepdim=True)
    return alpha * similarities.softmax(dim=1) + (1 - alpha) * known


def momentum_contrast(
    fast: Vectors,
    slow: Vectors,
    ids: torch.Tensor,
    queue: PairQueue,
    *,
    temperature: torch.Tensor,
    alpha: float,
    group: dist.ProcessGroup | None = None,
) -> tuple[torch.Tensor, Vectors, torch.Tensor]:
    """Image-text contrast (ITC) of this process's pairs, the mean of both directions.

    Every image is told from the slow texts of all processes and of the queue, and every text from
    the slow images. Those carry no gradient, so that averaging over processes gives the gradient
    of one process with all pairs. (BLIP's code leaves out what the other processes hold in the
    same step; with few processes and a long queue that is a small part.)

    Args:
        fast: what learns.
        slow: of the same pairs by the slow encoders.
        ids: of the images. Shape (B,), int64.
        queue: of earlier steps; it is not changed.
        temperature: divides similarities. Shape (1,).
        alpha: see `soft_targets`.
        group: the data-parallel processes; None is all.

    Returns:
        The loss, a scalar; slow vectors and ids of all processes, to be pushed to the queue.
    """
    everyone = Vectors(gather(slow.images, group), gather(slow.texts, group))
    every_id = gather(ids, group)
    positive = ids[:, None] == torch.cat([every_id, queue.ids])
    kept = queue.vectors
    pool = Vectors(
        torch.cat([everyone.images, kept.images]), torch.cat([everyone.texts, kept.texts])
    )
    loss = fast.images.new_zeros(())
    for own, teacher, others in (
        (fast.images, slow.images, pool.texts),
        (fast.texts, slow.texts, pool.images),
    ):
        with torch.no_grad():
            targets = soft_targets(teacher @ others.T / temperature, positive, alpha)
        scores = own @ others.T / temperature
        loss = loss - (scores.float().log_softmax(dim=1) * targets).sum(dim=1).mean()
    return loss / 2, everyone, every_id
