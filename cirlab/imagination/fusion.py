"""How much what is said counts beside what was drawn of it.

DAR (arXiv 2501.15379; its released eval.py) adds both similarities by weights that depend on the
round alone: a caption draws badly what it leaves out, and after two rounds it leaves out less. As
all vectors have length one, this is the similarity to the weighted sum of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

from cirlab.errors import UserError

#: (text, picture) of rounds 0, 1, and all further ones, as DAR's code has them.
PUBLISHED = ((0.8, 0.2), (0.8, 0.2), (0.5, 0.5))
#: How far from one the sum of two weights may be, which YAML writes in decimals.
_ROUNDING = 1e-6


class FusionSchedule:
    """Weights by round.

    Args:
        weights: of text and picture in each round, the last for all further ones. Each pair sums
            to one.

    Raises:
        UserError: there are none, or they are no such pairs.
    """

    def __init__(self, weights: Sequence[Sequence[float]] = PUBLISHED) -> None:
        if not weights:
            raise UserError(
                "weights of the fusion are empty; give a pair of text and picture, [[0.5, 0.5]]"
            )
        for number, pair in enumerate(weights):
            if len(pair) != 2 or not all(0 <= weight <= 1 for weight in pair):
                raise UserError(
                    f"weights of round {number} are {list(pair)}; give two from 0 to 1, of text "
                    "and of picture"
                )
            if not math.isclose(sum(pair), 1, abs_tol=_ROUNDING):
                raise UserError(
                    f"weights of round {number}, {list(pair)}, sum to {sum(pair):g}; change them "
                    "so that they sum to 1"
                )
        self.weights = tuple((float(text), float(picture)) for text, picture in weights)

    @property
    def draws(self) -> bool:
        """Whether pictures count in any round."""
        return any(picture > 0 for _, picture in self.weights)

    def __call__(
        self, text: torch.Tensor, pictures: torch.Tensor, rounds: torch.Tensor
    ) -> torch.Tensor:
        """Unit vectors of whole queries, (B, D).

        Args:
            text: unit vectors of what is said. Shape (B, D).
            pictures: unit vectors of what was drawn, the mean of several. Shape (B, D).
            rounds: 0 is what a dialogue began with. Shape (B,), int64.
        """
        share = self.shares(text, pictures, rounds)[:, None]
        return normalize((1 - share) * text + share * pictures, dim=-1)

    def shares(
        self, text: torch.Tensor, pictures: torch.Tensor, rounds: torch.Tensor
    ) -> torch.Tensor:
        """What pictures count of each query, in [0, 1]. Shape (B,)."""
        table = torch.tensor([picture for _, picture in self.weights], device=text.device)
        return table[rounds.clamp(max=len(self.weights) - 1).to(text.device)]


class AdaptiveFusion(FusionSchedule):
    """Weights by round that shrink where a picture does not show what was said.

    A picture that misses its text misleads; the encoder that searches with both also tells how
    similar they are. Nothing is learned for it, unlike the gate of ADaFuSE (arXiv 2603.21886),
    which found that more than half of the queries lose by DAR's pictures from round 2 on.

    Args:
        weights: as of the schedule; what a picture counts at most.
        low: cosine similarity of picture and text at and below which the picture counts nothing.
        high: at and above which it counts fully; in between its weight grows evenly.

    Raises:
        UserError: as for the schedule, or low is not below high.
    """

    def __init__(
        self,
        weights: Sequence[Sequence[float]] = PUBLISHED,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        super().__init__(weights)
        if not -1 <= low < high <= 1:
            raise UserError(
                f"low is {low} and high {high}; set them to cosine similarities, low below high"
            )
        self.low, self.high = low, high

    def shares(
        self, text: torch.Tensor, pictures: torch.Tensor, rounds: torch.Tensor
    ) -> torch.Tensor:
        """The schedule's, times how well each picture shows its text. Shape (B,)."""
        similar = (text * pictures).sum(dim=-1)
        shown = ((similar - self.low) / (self.high - self.low)).clamp(0, 1)
        return super().shares(text, pictures, rounds) * shown
