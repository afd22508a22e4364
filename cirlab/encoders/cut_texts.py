"""Texts that are longer than an encoder reads: counted, and told of, never silently cut."""

from __future__ import annotations

import logging

import torch

from cirlab import distributed

log = logging.getLogger(__name__)


class CutTexts:
    """Counts the texts of evaluations that lost their last words."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, bool]] = {}
        self._told: set[str] = set()

    def see(self, source: str, index: torch.Tensor, cut: torch.Tensor) -> None:
        """Take note of a batch.

        Args:
            source: benchmark or gallery that the texts are of.
            index: their positions there; what is seen twice counts once. Shape (B,), int64.
            cut: which of them lost words. Shape (B,), bool.
        """
        rows = self._rows.setdefault(source, {})
        rows.update(zip(index.tolist(), cut.tolist(), strict=True))

    def tell(self) -> None:
        """Warn of each source that has any, once for all; all processes together."""
        parts = distributed.all_gather_object(self._rows)
        self._rows = {}
        for source in dict.fromkeys(name for part in parts for name in part):
            rows = {i: cut for part in parts for i, cut in part.get(source, {}).items()}
            count = sum(rows.values())
            if not count or source in self._told:
                continue
            self._told.add(source)
            if distributed.rank() == 0:
                log.warning(
                    "%s: %s of %s texts are longer than the text encoder reads, which never sees "
                    "their last words (max_length of methods that have it reads more)",
                    source,
                    f"{count:,}",
                    f"{len(rows):,}",
                )
