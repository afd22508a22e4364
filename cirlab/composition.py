"""Triplets made on the fly from image-caption pairs (CoLLM, arXiv 2503.19910, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cirlab.errors import UserError

#: Modification texts over the caption of the target and that of its neighbour (CoLLM,
#: supplement). The wording is the paper's; it is part of the method.
MODIFICATION_TEMPLATES: tuple[str, ...] = (
    "show {target} instead of {neighbour}",
    "{target} instead of {neighbour}",
    "show {target} rather than {neighbour}",
    "{target} rather than {neighbour}",
    "rather than {neighbour}, show {target}",
    "rather than {neighbour}, {target}",
    "instead of {neighbour}, {target}",
    "{neighbour}, changed to {target}",
    "not {neighbour}, but {target}",
    "show {target}, not {neighbour}",
    "{neighbour} is missing, {target}",
    "{target}, and {neighbour} is missing",
    "remove {neighbour}, add {target}",
    "add {target}, remove {neighbour}",
    "{neighbour} become {target}",
)


def slerp(start: torch.Tensor, end: torch.Tensor, weight: float) -> torch.Tensor:
    """Walk along the great circle from `start` to `end` (CoLLM, equation 2).

    The paper's text and its supplement disagree on what a larger weight means; its formula
    and its ablation agree with this: 0 is the target's own image, 1 is the neighbour.

    Args:
        start: unit vectors. Shape (B, D).
        end: unit vectors. Shape (B, D).
        weight: fraction of the way, in [0, 1].

    Returns:
        Unit vectors. Shape (B, D).
    """
    cosine = (start * end).sum(dim=-1, keepdim=True)
    # arccos has an infinite slope at +-1, where equal images put it.
    theta = torch.arccos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
    mixed = torch.sin((1 - weight) * theta) * start + torch.sin(weight * theta) * end
    # Dividing by sin(theta) gives unit length in exact arithmetic; this does in any.
    return torch.nn.functional.normalize(mixed, dim=-1)


def nearest_neighbours(features: torch.Tensor, pool: torch.Tensor, offset: int) -> torch.Tensor:
    """Position in `pool` of each row's most similar other image (CoLLM, equation 1).

    Args:
        features: unit vectors. Shape (B, D).
        pool: unit vectors, which hold `features` from row `offset` on. Shape (M, D).
        offset: where this process's rows start in the pool.

    Returns:
        Shape (B,), int64.

    Raises:
        UserError: there is no other image.
    """
    _require_others(len(pool))
    scores = features @ pool.T
    rows = torch.arange(len(features), device=features.device)
    scores[rows, rows + offset] = -torch.inf
    return scores.argmax(dim=1)


def random_neighbours(count: int, pool_size: int, offset: int) -> torch.Tensor:
    """Any other image of the pool, the ablation of the nearest one. Shape (count,), int64."""
    _require_others(pool_size)
    own = torch.arange(count) + offset
    return (own + torch.randint(1, pool_size, (count,))) % pool_size


def _require_others(pool_size: int) -> None:
    if pool_size < 2:
        raise UserError(
            f"a batch of {pool_size} holds no neighbour to make a triplet with; set "
            "data.init_args.batch_size to at least 2"
        )


def modification_texts(
    targets: Sequence[str], neighbours: Sequence[str], probability: float
) -> list[str]:
    """Modification texts of synthesised triplets.

    With `probability` (0.75 in the paper) a random template over both captions, else the
    target's caption alone. Draws from torch's global generator, whose state checkpoints keep.
    """
    use_template = torch.rand(len(targets)) < probability
    choice = torch.randint(len(MODIFICATION_TEMPLATES), (len(targets),))
    return [
        MODIFICATION_TEMPLATES[int(which)].format(target=target, neighbour=neighbour)
        if templated
        else target
        for target, neighbour, templated, which in zip(
            targets, neighbours, use_template.tolist(), choice.tolist(), strict=True
        )
    ]
