"""Retrieval metrics as pure functions of the targets' ranks.

Ranks are 1-based int64 tensors (Q, T): row q holds the ranks of query q's targets, padded
with 0. They come from `cirlab.retrieval.index`, where ties are counted against the targets. No
metric ever needs the ranking itself, so nothing here grows with the gallery. All values are
fractions in [0, 1], mean ranks and the best log rank integral apart.

Metrics of dialogues take a table (D, R): row d holds the rank of dialogue d's best target in
every round, 0 where the dialogue has no such round (it has ended). What was reached stays
reached, so `cumulative_hits_at_k` and `best_log_rank_integral` count every dialogue in every
round; metrics of one round (`round_recalls_at_k`, `round_mean_ranks`) have no rank of an ended
dialogue and are means over the dialogues that have this round.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


def recall_at_k(ranks: Tensor, k: int) -> float:
    """Share of queries with at least one target among the first k.

    For a benchmark that counts only the principal target, pass `ranks[:, :1]`.

    Args:
        ranks: 1-based, padded with 0. Shape (Q, T).
        k: cut-off, at least 1.
    """
    return _hits(_checked(ranks), _cutoff(k)).double().mean().item()


def mean_average_precision_at_k(ranks: Tensor, k: int) -> float:
    """Mean over queries of AP@k with several targets (CIRCO, Baldrati et al. 2023, eq. 8).

    `AP@k = sum_{i <= k} P(i) rel(i) / min(targets, k)`: a query with more targets than k can
    still reach 1.

    Args:
        ranks: 1-based, padded with 0, distinct within a row as far as they are <= k.
            Shape (Q, T).
        k: cut-off, at least 1.
    """
    return _average_precision(_checked(ranks), _cutoff(k)).mean().item()


def mean_rank(ranks: Tensor) -> float:
    """Mean over queries of the rank of the best target. Shape (Q, T)."""
    return best_ranks(_checked(ranks)).double().mean().item()


def cumulative_hits_at_k(ranks: Tensor, k: int) -> list[float]:
    """Share of dialogues that have succeeded by each round (ChatIR, Levy et al. 2023, sec. 4).

    A dialogue succeeds at the first round in which its target is among the first k, and stays
    successful: the numbers never fall from round to round, and the denominator is always the
    number of dialogues.

    Args:
        ranks: rank of the target in every round, 1-based; 0 where a dialogue has ended.
            Shape (D, R).
        k: cut-off, at least 1.

    Returns:
        R fractions.
    """
    hit = (_checked(ranks) <= _cutoff(k)) & (ranks > 0)
    return (hit.cumsum(dim=1) > 0).double().mean(dim=0).tolist()


def round_recalls_at_k(ranks: Tensor, k: int) -> list[float]:
    """Share of dialogues whose target is among the first k in each round, whatever came before.

    Args:
        ranks: 1-based, 0 where a dialogue has ended; such a dialogue leaves the round's
            denominator. Shape (D, R).
        k: cut-off, at least 1.

    Returns:
        R fractions.

    Raises:
        ValueError: a round that no dialogue has.
    """
    present = _present(ranks)
    hits = present & (ranks <= _cutoff(k))
    return (hits.sum(dim=0).double() / present.sum(dim=0)).tolist()


def round_mean_ranks(ranks: Tensor) -> list[float]:
    """Mean rank of the target in each round, over the dialogues that have this round.

    ChatIR's average target rank, 1-based.

    Args:
        ranks: 1-based, 0 where a dialogue has ended. Shape (D, R).

    Returns:
        R mean ranks.

    Raises:
        ValueError: a round that no dialogue has.
    """
    present = _present(ranks)
    return (ranks.sum(dim=0).double() / present.sum(dim=0)).tolist()


def best_log_rank_integral(ranks: Tensor) -> float:
    """BRI: how good the best rank so far is over a whole dialogue (PlugIR, Lee et al. 2024).

    `1/T sum_{t < T} mean_d((log m_t + log m_{t+1}) / 2)` for rounds 0 to T, with m_t the best
    rank of dialogue d up to round t. 0 is perfect, lower is better. An ended dialogue keeps its
    best rank. With a single round the integral has no length; its limit is the mean of log m_0.

    Args:
        ranks: 1-based, 0 where a dialogue has ended; one without rank in the first rounds counts
            from its first rank on. Shape (D, R).
    """
    present = _checked(ranks) > 0
    best = ranks.masked_fill(~present, torch.iinfo(ranks.dtype).max).cummin(dim=1).values
    begun = present.cumsum(dim=1) > 0
    height = best.double().log()
    if ranks.shape[1] > 1:
        height, begun = (height[:, :-1] + height[:, 1:]) / 2, begun[:, :-1]
    mean = height.masked_fill(~begun, 0.0).sum(dim=0) / begun.sum(dim=0)
    # Rounds before anybody's first rank are no part of the integral.
    return mean[begun.any(dim=0)].mean().item()


def last_ranks(ranks: Tensor) -> Tensor:
    """Rank in the last round that each dialogue has. Shape (D, R) to (D, 1)."""
    present = _checked(ranks) > 0
    place = torch.arange(1, ranks.shape[1] + 1, device=ranks.device)
    last = (present * place).argmax(dim=1, keepdim=True)
    return ranks.gather(1, last)


def recalls(ranks: Tensor, cutoffs: Sequence[int], prefix: str = "recall") -> dict[str, float]:
    """`{"recall_at_1": ..}` for several cut-offs."""
    return {f"{prefix}_at_{k}": recall_at_k(ranks, k) for k in cutoffs}


def mean_average_precisions(ranks: Tensor, cutoffs: Sequence[int]) -> dict[str, float]:
    """`{"map_at_5": ..}` for several cut-offs."""
    return {f"map_at_{k}": mean_average_precision_at_k(ranks, k) for k in cutoffs}


def best_ranks(ranks: Tensor) -> Tensor:
    """Rank of each query's best target. Shape (Q, T) to (Q,)."""
    return ranks.masked_fill(ranks == 0, torch.iinfo(ranks.dtype).max).min(dim=1).values


class RankMetrics(Metric):
    """Recall@k, mAP@k and mean rank, accumulated over batches, devices and processes.

    The state is a handful of sums, so processes may hold any number of queries each, none
    included, without one waiting for another.

    Args:
        recall: cut-offs of recall@k.
        average_precision: cut-offs of mAP@k.
        **kwargs: passed on to `torchmetrics.Metric`.
    """

    full_state_update = False
    queries: Tensor
    rank_sum: Tensor
    hits: Tensor
    precision: Tensor

    def __init__(
        self,
        recall: Sequence[int] = (1, 5, 10),
        average_precision: Sequence[int] = (),
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.recall_cutoffs = [_cutoff(k) for k in recall]
        self.precision_cutoffs = [_cutoff(k) for k in average_precision]
        self._add_sum("queries", torch.zeros((), dtype=torch.long))
        self._add_sum("rank_sum", torch.zeros((), dtype=torch.long))
        self._add_sum("hits", torch.zeros(len(self.recall_cutoffs), dtype=torch.long))
        self._add_sum("precision", torch.zeros(len(self.precision_cutoffs), dtype=torch.double))

    def _add_sum(self, name: str, default: Tensor) -> None:
        self.add_state(name, default=default, dist_reduce_fx="sum")

    def update(self, ranks: Tensor) -> None:
        """Count some queries. Shape (Q, T), 1-based, padded with 0."""
        if len(ranks) == 0:
            return
        ranks = _checked(ranks)
        self.queries += len(ranks)
        self.rank_sum += best_ranks(ranks).sum()
        for i, k in enumerate(self.recall_cutoffs):
            self.hits[i] += _hits(ranks, k).sum()
        for i, k in enumerate(self.precision_cutoffs):
            self.precision[i] += _average_precision(ranks, k).sum()

    def compute(self) -> dict[str, Tensor]:
        """`{"recall_at_10": .., "map_at_5": .., "mean_rank": ..}` as scalars.

        Raises:
            ValueError: no query was counted, on any process.
        """
        if self.queries == 0:
            raise ValueError("no query was counted: metrics of nothing are undefined")
        recall = self.hits.double() / self.queries
        precision = self.precision / self.queries
        named = {f"recall_at_{k}": recall[i] for i, k in enumerate(self.recall_cutoffs)}
        named |= {f"map_at_{k}": precision[i] for i, k in enumerate(self.precision_cutoffs)}
        return named | {"mean_rank": self.rank_sum.double() / self.queries}


def _checked(ranks: Tensor) -> Tensor:
    """Refuse what no ranking can have produced.

    Raises:
        ValueError: wrong type or shape, no query, a query without a target, a negative rank.
    """
    if ranks.is_floating_point() or ranks.is_complex() or ranks.dtype == torch.bool:
        raise ValueError(f"ranks must be integers, not {ranks.dtype}")
    if ranks.ndim != 2 or 0 in ranks.shape:
        raise ValueError(f"ranks must have shape (Q, T) with Q, T >= 1, not {tuple(ranks.shape)}")
    if (ranks < 0).any():
        raise ValueError(f"ranks are 1-based and padded with 0, but one is {ranks.min().item()}")
    empty = (ranks == 0).all(dim=1).nonzero()
    if len(empty):
        raise ValueError(f"row {empty[0].item()} has no rank at all: a query needs a target")
    return ranks


def _present(ranks: Tensor) -> Tensor:
    """Which rounds each dialogue has. Shape (D, R), bool.

    Raises:
        ValueError: no dialogue has one of the rounds, of which a mean is then undefined.
    """
    present = _checked(ranks) > 0
    empty = (~present.any(dim=0)).nonzero()
    if len(empty):
        raise ValueError(f"column {empty[0].item()} has no rank at all: no dialogue has this round")
    return present


def _cutoff(k: int) -> int:
    if k < 1:
        raise ValueError(f"the cut-off k must be at least 1, not {k}")
    return k


def _hits(ranks: Tensor, k: int) -> Tensor:
    """Whether any target is among the first k. Shape (Q,), bool."""
    return ((ranks > 0) & (ranks <= k)).any(dim=1)


def _average_precision(ranks: Tensor, k: int) -> Tensor:
    """AP@k of every query. Shape (Q,), float64."""
    present = ranks > 0
    ordered = ranks.masked_fill(~present, torch.iinfo(ranks.dtype).max).sort(dim=1).values
    found = ordered <= k
    if (found[:, 1:] & (ordered[:, 1:] == ordered[:, :-1])).any():
        raise ValueError("two targets of one query cannot have the same rank")
    # The j-th best target stands at rank r with j relevant images up to it: P(r) = j / r.
    order = torch.arange(1, ranks.shape[1] + 1, device=ranks.device)
    precision = (order / ordered.double()).masked_fill(~found, 0.0).sum(dim=1)
    return precision / present.sum(dim=1).clamp(max=k)
