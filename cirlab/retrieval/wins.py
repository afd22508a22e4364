"""For how many queries a method ranks the target better than a part of the query does.

The mean over all queries hides that one way of asking helps some and hurts others. With pictures
that are drawn from a dialogue it does: from the second round on, more than half of the queries of
VisDial lose rank by them (ADaFuSE, arXiv 2603.21886, on DAR, arXiv 2501.15379).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cirlab.benchmarks.base import TargetRanks, breakdown_rows
from cirlab.metrics import best_ranks
from cirlab.records import Query


def wins(
    ranks: TargetRanks, beside: TargetRanks, queries: Sequence[Query], tags: Sequence[str]
) -> dict[str, Any]:
    """Queries whose best target ranks better, worse and equally well.

    Args:
        ranks: by the method, of Q queries.
        beside: of the same targets by something else.
        queries: Q of them.
        tags: by whose values they are counted, too.

    Returns:
        {"all": counts, "breakdown": {tag: {value: counts}}}, where counts are "better", "worse" and
        "equal", whole numbers. Numbers stand in their order.
    """
    ours, theirs = best_ranks(ranks.targets), best_ranks(beside.targets)
    by_tag = {tag: breakdown_rows(queries, tag) for tag in tags}
    return {
        "all": _counts(ours, theirs),
        "breakdown": {
            tag: {
                value: _counts(ours[rows], theirs[rows])
                for value, rows in sorted(groups.items(), key=lambda group: _order(group[0]))
            }
            for tag, groups in by_tag.items()
        },
    }


def _counts(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, int]:
    return {
        "better": int((ours < theirs).sum()),
        "worse": int((ours > theirs).sum()),
        "equal": int((ours == theirs).sum()),
    }


def _order(value: str) -> tuple[int, str]:
    """Round 10 comes after round 9."""
    return (int(value), "") if value.isdecimal() else (0, value)
