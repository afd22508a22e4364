"""Encode a large batch in the memory of a small one.

A contrastive loss needs the vectors of the whole batch, but not what every layer computed for
them. So a batch is encoded in chunks, of which only the vectors are kept; the backward pass
computes one chunk at a time again. The gradient is that of the whole batch, at the price of one
more forward pass: this is GradCache (Gao et al., arXiv 2101.06983), stated as activation
checkpointing over chunks of the batch, so that automatic optimisation, clipping, accumulation
and the random state (dropout) stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cirlab.errors import UserError

T = TypeVar("T")


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
    return [checkpoint(encode, chunk, use_reentrant=False) for chunk in chunks]


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
