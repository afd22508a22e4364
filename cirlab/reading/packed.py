"""Millions of strings in two arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class PackedTexts(Sequence[str]):
    """A read-only list of strings as one block of bytes and its offsets.

    A Python list of strings is copied into every forked loader worker bit by bit, as reference
    counts are written into its pages; arrays stay shared.

    Args:
        texts: what to pack.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        block = bytearray()
        ends = [0]
        for text in texts:
            block += text.encode("utf-8")
            ends.append(len(block))
        self._block = bytes(block)
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(f"text {at} of {len(self)}")
        return self._block[self._ends[at] : self._ends[at + 1]].decode("utf-8")
