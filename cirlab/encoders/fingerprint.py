"""Telling two sets of weights apart, by all of their values or by some."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch


def fingerprint(weights: Iterable[tuple[str, torch.Tensor]], values: int = 64) -> str:
    """Short hash of named tensors; their order does not matter.

    Args:
        weights: names and tensors, as a state dict's items.
        values: evenly spaced values that are read of each tensor.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights, key=lambda item: item[0]):
        flat = tensor.detach().reshape(-1)
        picked = flat[:: max(1, len(flat) // values)][:values].float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()[:16]


def full_fingerprint(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The same by every byte, which misses no change: a gigabyte takes a second or two."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
