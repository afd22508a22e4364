"""Contrastive losses over unit vectors, correct across processes.

Each process scores its own queries against the targets of all processes, gathered with
gradient; averaging over processes (DDP, FSDP) then gives exactly the gradient of one process
with the whole batch. Gathering without gradient, or averaging a loss that every process
computes in full, gives a gradient that is up to 50 % off.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from cirlab.distributed import gather, gather_with_grad, rank
from cirlab.errors import UserError
from cirlab.records import Image, Pair, Triplet


class ContrastiveLoss(nn.Module):
    """InfoNCE and its hard-negative form, aware of target ids.

    With `beta = 0` this is InfoNCE. With `beta > 0` it is HN-NCE (Radenovic et al., CVPR 2023,
    equation 3): negative j of anchor i counts with
    `w_ij = N_i exp(beta s_ij) / sum_k exp(beta s_ik)`, where the sum runs over the N_i negatives
    and s is already divided by the temperature; positives count with `alpha`.

    Several targets of a batch may be correct for one query: an image that the batch holds twice,
    or any of the query's own further targets. They are all positives: the loss is the mean of
    their log-likelihoods, as in BLIP's id-aware targets (Li et al., 2022).

    Args:
        temperature: divides cosine similarities (unitless). CoLLM does not print its own; 0.07
            is the constant of the implementation it names as its model.
        alpha: weight of the positive in the denominator.
        beta: concentration on hard negatives; 0 switches it off.
        symmetric: add the target-to-query direction (a sum, not a mean).

    Raises:
        UserError: a constant is out of range.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        alpha: float = 1.0,
        beta: float = 0.0,
        symmetric: bool = True,
    ) -> None:
        super().__init__()
        if temperature <= 0 or alpha <= 0 or beta < 0:
            raise UserError(
                f"the loss has temperature {temperature}, alpha {alpha}, beta {beta}; temperature "
                "and alpha must be above 0 and beta at least 0"
            )
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.symmetric = symmetric

    def forward(
        self,
        queries: torch.Tensor,
        targets: torch.Tensor,
        target_ids: torch.Tensor,
        negatives: torch.Tensor | None = None,
        negative_ids: torch.Tensor | None = None,
        temperature: torch.Tensor | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> torch.Tensor:
        """Loss of this process's queries, a scalar.

        Args:
            queries: unit vectors. Shape (B, D).
            targets: unit vectors of their targets, row by row. Shape (B, D).
            target_ids: ids of the targets, shape (B,), or of all that are correct for each query,
                that of its row in `targets` first and repeated as padding, shape (B, C). int64.
            negatives: further gallery vectors to tell the targets from (the reference images
                of composed queries). Shape (N, D).
            negative_ids: their ids: where one equals a query's target it is a positive.
                Shape (N,), int64.
            temperature: overrides the fixed one, where it is learned. Shape (1,).
            group: the data-parallel processes; None is all.
        """
        tau = self.temperature if temperature is None else temperature
        correct = target_ids if target_ids.ndim == 2 else target_ids[:, None]
        pool, pool_ids = gather_with_grad(targets, group), gather(correct[:, 0], group)
        positive = is_correct(correct, pool_ids)
        extra = torch.zeros_like(positive[:, :0])
        if negatives is not None and negative_ids is not None:
            pool = torch.cat([pool, gather_with_grad(negatives, group)])
            extra = is_correct(correct, gather(negative_ids, group))
        loss = self._one_way(queries @ pool.T / tau, torch.cat([positive, extra], dim=1))
        if self.symmetric:
            scores = targets @ gather_with_grad(queries, group).T / tau
            loss = loss + self._one_way(scores, _of_own_targets(positive, group))
        return loss

    def _one_way(self, scores: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        """Mean over anchors.

        Args:
            scores: divided by the temperature. Shape (B, M).
            positive: which of them are to be high. Shape (B, M), bool.
        """
        scores = scores.float()
        log_weights = self._log_weights(scores.detach(), positive)
        log_normaliser = torch.logsumexp(scores + log_weights, dim=1, keepdim=True)
        log_likelihood = (scores - log_normaliser).masked_fill(~positive, 0.0)
        return -(log_likelihood.sum(dim=1) / positive.sum(dim=1)).mean()

    def _log_weights(self, scores: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        """Logarithms of the denominator's weights, (B, M)."""
        log_alpha = torch.tensor(self.alpha, device=scores.device).log()
        if self.beta == 0:
            return torch.where(positive, log_alpha, torch.zeros_like(scores))
        hardness = (self.beta * scores).masked_fill(positive, -torch.inf)
        count = (~positive).sum(dim=1, keepdim=True)
        # An anchor without any negative has an empty sum; its row holds positives only.
        log_weights = count.log() + hardness - torch.logsumexp(hardness, dim=1, keepdim=True)
        return torch.where(positive, log_alpha, log_weights)


def is_correct(correct: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Which of the ids (M,) are among each query's correct ones (B, C). Shape (B, M), bool."""
    found = correct[:, :1] == ids
    for column in correct[:, 1:].unbind(dim=1):
        found |= column[:, None] == ids
    return found


def _of_own_targets(positive: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Which queries of all processes this process's targets are correct for.

    Args:
        positive: which targets of all processes are correct for its queries. Shape (B, M).
        group: those processes.
    """
    size = len(positive)
    # Collectives of some backends do not take booleans.
    everyone = gather(positive.to(torch.uint8), group).bool()
    place = rank(group)
    return everyone[:, place * size : (place + 1) * size].T


def target_ids(triplets: Sequence[Triplet]) -> torch.Tensor:
    """Ids of the correct targets of each query, the one drawn first. Shape (B, C), int64."""
    return _padded([(triplet.target.id, *triplet.also_correct) for triplet in triplets])


def pair_ids(pairs: Sequence[Pair]) -> torch.Tensor:
    """The same for pairs, whose captions are the queries. Shape (B, C), int64."""
    return _padded([(pair.image.id, *pair.also_correct) for pair in pairs])


def _padded(names: Sequence[tuple[str, ...]]) -> torch.Tensor:
    width = max(map(len, names))
    padded = [row + row[:1] * (width - len(row)) for row in names]
    return torch.tensor([[_number(name) for name in row] for row in padded])


def image_ids(images: Sequence[Image]) -> torch.Tensor:
    """Ids as numbers that agree between processes, for id-aware positives. Shape (B,), int64."""
    return torch.tensor([_number(image.id) for image in images])


def text_ids(texts: Sequence[str]) -> torch.Tensor:
    """The same for texts: equal words are one target. Shape (B,), int64."""
    return torch.tensor([_number(text) for text in texts])


def _number(name: str) -> int:
    # Python's own hash differs from process to process.
    return zlib.crc32(name.encode())
