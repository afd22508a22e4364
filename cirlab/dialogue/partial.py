"""Partial dialogues: how a text encoder learns to read a dialogue of any length.

ChatIR (Levy et al., NeurIPS 2023, section 3) trains on the first i rounds of VisDial's dialogues
and leaves the caption out of a part of the samples, so that the encoder reads the answers as well.
The number of rounds is uniform, and the caption is left out only if a round remains, as in PlugIR's
code (Lee et al., ACL 2024); ChatIR's was not released.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cirlab.errors import UserError


@dataclass(frozen=True)
class PartialDialogue:
    """Which part of a dialogue a training sample shows, and as what text.

    Attributes:
        separator: stands between the texts. The paper has [SEP], the released evaluation ", ".
        caption_dropout: share of the samples with at least one round that lack the caption.

    Raises:
        UserError: a share outside [0, 1].
    """

    separator: str = ", "
    caption_dropout: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1:
            raise UserError(
                f"caption_dropout is {self.caption_dropout}; set it to a share from 0 to 1"
            )

    def draw(self, caption: str, rounds: Sequence[str], generator: np.random.Generator) -> str:
        """The caption and the first i rounds, i uniform from 0 to all of them.

        Args:
            caption: what the dialogue began with.
            rounds: one text each, "question? answer".
            generator: the only source of randomness; two numbers are drawn from it.
        """
        shown, opened = self.plan(len(rounds), generator)
        return self.join(caption if opened else None, rounds[:shown])

    def plan(self, rounds: int, generator: np.random.Generator) -> tuple[int, bool]:
        """How many of the rounds are shown, and whether the caption stands before them."""
        shown = int(generator.integers(rounds + 1))
        dropped = generator.random() < self.caption_dropout
        return shown, not (dropped and shown)

    def join(self, caption: str | None, rounds: Sequence[str]) -> str:
        """What is shown, as one text."""
        begin = () if caption is None else (caption,)
        return self.separator.join((*begin, *rounds))
