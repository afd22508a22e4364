"""Encode a large batch in the memory of a small one.

A contrastive loss needs the vectors of the whole batch, but not what every layer computed for
them. So a batch is encoded in chunks, of which only the vectors are kept; the backward pass
computes one chunk at a time again. The gradient is that of the whole batch, at the price of one
more forward pass: this is GradCache (Gao et al., arXiv 2101.06983), stated as activation
checkpointing over chunks of the batch, so that automatic optimisation, clipping, accumulation
and the random state (dropout) stay as they are.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cirlab.errors import UserError

T = TypeVar("T")

#: Chunks between two times that freed memory is given back: rare enough to cost little.
TIDY_EVERY = 4
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def in_chunks(encode: Callable[[Any], torch.Tensor], chunks: Sequence[Any]) -> torch.Tensor:
    """Rows of all chunks, (B, ...), encoded one chunk after the other.

    Args:
        encode: from a chunk to its rows, (C, ...). No collectives inside: it runs again in the
            backward pass.
        chunks: at least one; see `split`.
    """
    rows = each_chunk(encode, chunks)
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def each_chunk(encode: Callable[[Any], T], chunks: Sequence[Any]) -> list[T]:
    """What `encode` makes of each chunk, where that is more than one tensor.

    Nothing is computed twice where gradients are disabled or there is only one chunk.
    """
    if len(chunks) == 1 or not torch.is_grad_enabled():
        return [encode(chunk) for chunk in chunks]
    computed = count(1)

    def encode_and_tidy(chunk: Any) -> T:
        # Again in the backward pass, so that both passes are tidied up after.
        if next(computed) % TIDY_EVERY == 0:
            give_back_memory()
        return encode(chunk)

    return [checkpoint(encode_and_tidy, chunk, use_reentrant=False) for chunk in chunks]


def give_back_memory() -> None:
    """Return what was freed on the heap to the system, where the C library can.

    glibc keeps freed blocks between those in use, and fits each chunk's anew beside them: without
    this, a batch of 1,024 in chunks of 32 holds 3.8 times as much on a CPU as one of 64. GPUs have
    an allocator of their own.
    """
    if _LIBC is not None and hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def split(inputs: Any, size: int | None) -> list[Any]:
    """Cut inputs into chunks of consecutive rows.

    Args:
        inputs: a tensor (B, ...), or a mapping of such, nested or not.
        size: most rows of a chunk; None makes one chunk.

    Raises:
        ValueError: the tensors differ in their number of rows, or there are none.
    """
    if size is None:
        return [inputs]
    counts = set(_row_counts(inputs))
    if len(counts) != 1:
        raise ValueError(f"chunks need tensors of one number of rows, not of {sorted(counts)}")
    return [_rows(inputs, start, start + size) for start in range(0, counts.pop(), size)]


def check_chunk_size(chunk_size: int | None, *modules: nn.Module) -> None:
    """Refuse chunks that would not give the gradient of the whole batch.

    Args:
        chunk_size: rows encoded at once; None is always right.
        modules: what encodes, in the mode that it trains in.

    Raises:
        UserError: fewer than one row, or a module that takes statistics over its batch.
    """
    if chunk_size is None:
        return
    if chunk_size < 1:
        raise UserError(
            f"chunk_size is {chunk_size}; set it to the rows that are encoded at once, 1 or more, "
            "or to null for the whole batch"
        )
    for module in modules:
        for name, layer in module.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
                raise UserError(
                    f"chunk_size is {chunk_size}, but layer {name} ({type(layer).__name__}) takes "
                    "its statistics over the whole batch; set chunk_size: null, or freeze this part"
                )


def _row_counts(inputs: Any) -> list[int]:
    if isinstance(inputs, Mapping):
        return [count for value in inputs.values() for count in _row_counts(value)]
    return [len(inputs)]


def _rows(inputs: Any, start: int, stop: int) -> Any:
    if isinstance(inputs, Mapping):
        return {key: _rows(value, start, stop) for key, value in inputs.items()}
    return inputs[start:stop]
