"""A loss that follows recall@k itself, by which ChatIR is trained (arXiv 2305.20062, section 3).

Patel et al., "Recall@k Surrogate Loss with Large Batches and Similarity Mixup" (CVPR 2022): the
rank of a target counts the images that are nearer to its query, and recall@k is whether it is at
most k. Both steps are replaced by sigmoids, so that the loss has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from cirlab.distributed import gather, gather_with_grad
from cirlab.errors import UserError
from cirlab.losses import is_correct

#: Cut-offs of PlugIR's code (Lee et al., ACL 2024); ChatIR's training code was not released.
CUT_OFFS = (1, 2, 4, 8, 16)


class RecallSurrogate(nn.Module):
    """One minus a smooth recall@k, averaged over cut-offs; aware of target ids.

    With s the cosine similarities, `rank_i = 1 + sum_j sigmoid((s_ij - s_ii) / temperature)` over
    all images j of the batch but those that are correct for query i, and the loss is the mean over
    k of `1 - mean_i sigmoid((k - rank_i) / rank_temperature)`. Only queries search, as in
    retrieval by dialogue. The batch is the one of all processes; see `cirlab.losses` on why the
    gradient is that of one process with it.

    Args:
        cut_offs: the k, whole numbers from 1. Those above the global batch add next to nothing.
        temperature: of the comparison of two similarities, unitless.
        rank_temperature: of the comparison of a rank with a cut-off, in ranks.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self,
        cut_offs: Sequence[int] = CUT_OFFS,
        temperature: float = 0.01,
        rank_temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if not cut_offs or min(cut_offs) < 1:
            raise UserError(
                f"cut_offs of the loss are {list(cut_offs)}; give at least one, each 1 or more"
            )
        if temperature <= 0 or rank_temperature <= 0:
            raise UserError(
                f"the loss has temperature {temperature} and rank_temperature {rank_temperature}; "
                "set both above 0"
            )
        self.cut_offs = tuple(cut_offs)
        self.temperature = temperature
        self.rank_temperature = rank_temperature

    def forward(
        self,
        queries: torch.Tensor,
        targets: torch.Tensor,
        target_ids: torch.Tensor,
        group: dist.ProcessGroup | None = None,
    ) -> torch.Tensor:
        """Loss of this process's queries, a scalar.

        Args:
            queries: unit vectors. Shape (B, D).
            targets: unit vectors of their targets, row by row. Shape (B, D).
            target_ids: as for `cirlab.losses.ContrastiveLoss`. Shape (B,) or (B, C), int64.
            group: the data-parallel processes; None is all.
        """
        correct = target_ids if target_ids.ndim == 2 else target_ids[:, None]
        pool, pool_ids = gather_with_grad(targets, group), gather(correct[:, 0], group)
        # A similarity in 16 bits is off by as much as the temperature.
        with torch.autocast(queries.device.type, enabled=False):
            own = (queries.float() * targets.float()).sum(dim=1, keepdim=True)
            ahead = (queries.float() @ pool.float().T - own) / self.temperature
        return surrogate(
            smooth_ranks(ahead, is_correct(correct, pool_ids)),
            self.cut_offs,
            self.rank_temperature,
        )


def smooth_ranks(ahead: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    """Ranks of the targets, 1 the best. Shape (B,).

    Args:
        ahead: by how much each image is nearer to a query than its target, divided by the
            temperature. Shape (B, M).
        correct: which images are not counted. Shape (B, M), bool.
    """
    return 1 + torch.sigmoid(ahead).masked_fill(correct, 0.0).sum(dim=1)


def surrogate(
    ranks: torch.Tensor, cut_offs: Sequence[int], rank_temperature: float
) -> torch.Tensor:
    """One minus the smooth recall, a mean over cut-offs and queries; `ranks` is of shape (B,)."""
    k = torch.tensor(cut_offs, device=ranks.device, dtype=ranks.dtype)
    return 1 - torch.sigmoid((k - ranks[:, None]) / rank_temperature).mean()
