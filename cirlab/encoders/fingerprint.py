"""Telling two sets of weights apart without reading all of them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable

import torch

#: Reads every value of a tensor.
ALL = sys.maxsize


def fingerprint(weights: Iterable[tuple[str, torch.Tensor]], values: int = 64) -> str:
    """Short hash of named tensors; their order does not matter.

    Args:
        weights: names and tensors, as a state dict's items.
        values: evenly spaced values that are read of each tensor; `ALL` misses no change.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights, key=lambda item: item[0]):
        flat = tensor.detach().reshape(-1)
        picked = flat[:: max(1, len(flat) // values)][:values].float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()[:16]
