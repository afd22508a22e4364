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
from torch import nn

from cirlab.distributed import gather, gather_with_grad
from cirlab.errors import UserError
from cirlab.records import Image


class ContrastiveLoss(nn.Module):
    """InfoNCE and its hard-negative form, aware of target ids.

    With `beta = 0` this is InfoNCE. With `beta > 0` it is HN-NCE (Radenovic et al., CVPR 2023,
    equation 3): negative j of anchor i counts with
    `w_ij = N_i exp(beta s_ij) / sum_k exp(beta s_ik)`, where the sum runs over the N_i negatives
    and s is already divided by the temperature; positives count with `alpha`.

    Several targets may carry the id of an anchor's own target (a batch that holds an image
    twice). They are all positives: the loss is the mean of their log-likelihoods, as in BLIP's
    id-aware targets (Li et al., 2022).

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
    ) -> torch.Tensor:
        """Loss of this process's queries, a scalar.

        Args:
            queries: unit vectors. Shape (B, D).
            targets: unit vectors of their targets, row by row. Shape (B, D).
            target_ids: equal for equal targets. Shape (B,), int64.
            negatives: further gallery vectors to tell the targets from (the reference images
                of composed queries). Shape (N, D).
            negative_ids: their ids: where one equals a query's target it is a positive.
                Shape (N,), int64.
            temperature: overrides the fixed one, where it is learned. Shape (1,).
        """
        tau = self.temperature if temperature is None else temperature
        all_targets, all_ids = gather_with_grad(targets), gather(target_ids)
        pool, pool_ids = all_targets, all_ids
        if negatives is not None and negative_ids is not None:
            pool = torch.cat([pool, gather_with_grad(negatives)])
            pool_ids = torch.cat([pool_ids, gather(negative_ids)])
        loss = self._one_way(queries @ pool.T / tau, target_ids, pool_ids)
        if self.symmetric:
            scores = targets @ gather_with_grad(queries).T / tau
            loss = loss + self._one_way(scores, target_ids, all_ids)
        return loss

    def _one_way(
        self, scores: torch.Tensor, ids: torch.Tensor, pool_ids: torch.Tensor
    ) -> torch.Tensor:
        """Mean over anchors; `scores` (B, M) are divided by the temperature."""
        scores = scores.float()
        positive = ids[:, None] == pool_ids[None, :]
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


def image_ids(images: Sequence[Image]) -> torch.Tensor:
    """Ids as numbers that agree between processes, for id-aware positives. Shape (B,), int64."""
    # Python's own hash differs from process to process.
    return torch.tensor([zlib.crc32(image.id.encode()) for image in images])
