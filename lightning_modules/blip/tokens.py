"""Rows and columns of tokenised texts, as BLIP's matching puts them together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import pad

#: Ids and mask of texts, each (B, L).
Tokens = Mapping[str, torch.Tensor]


def rows_of(tokens: Tokens, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Some texts, each (P, L), by their places (P,)."""
    return {key: value[rows.to(value.device)] for key, value in tokens.items()}


def widened(tokens: Tokens, width: int) -> dict[str, torch.Tensor]:
    """Tokens with padding up to a width; the mask makes any token a padding."""
    return {key: pad(value, (0, width - value.shape[1])) for key, value in tokens.items()}


def trimmed(tokens: Tokens) -> dict[str, torch.Tensor]:
    """Tokens without the columns that are padding in all rows."""
    longest = int(tokens["attention_mask"].sum(dim=1).max())
    return {key: value[:, :longest] for key, value in tokens.items()}
