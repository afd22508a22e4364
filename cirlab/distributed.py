"""Every collective of the house, and what each of them assumes.

All functions work without a process group, as one process that is rank 0 of 1.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor

from cirlab.errors import UserError

T = TypeVar("T")

#: Rows travel in pieces of at most this size per process, so that gathering a gallery needs
#: little device memory however large the gallery is.
CHUNK_MIB = 64


def rank(group: dist.ProcessGroup | None = None) -> int:
    """This process's place in the group; 0 without a process group."""
    return dist.get_rank(group) if _initialized() else 0


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Number of processes in the group; 1 without a process group."""
    return dist.get_world_size(group) if _initialized() else 1


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def leave() -> None:
    """Leave all groups, as the last thing that a program does with them.

    A thread of gloo may still hold a tensor of the last collective. If it lets go of it once the
    interpreter ends, the process is aborted ("terminate called without an active exception",
    https://github.com/pytorch/pytorch/issues/190489). The threads end with their groups, which
    last as long as something holds them.
    """
    if _initialized():
        gc.collect()
        dist.destroy_process_group()


def gather_with_grad(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Concatenate the batches of all processes, and let gradients flow back to each.

    With it, a contrastive loss over (own queries x all targets), averaged over processes as
    DDP does, has exactly the gradient of one process with the whole batch. Pass the
    *data-parallel* group: under tensor parallelism several ranks hold the same batch, whose
    copies would count as negatives.

    Args:
        x: the same shape on every rank. Shape (B, ...).
        group: the processes to gather over; None is all of them.

    Returns:
        Shape (W * B, ...), in rank order; `x` itself in a single process.
    """
    if world_size(group) == 1:
        return x
    return torch.cat(dist_nn.all_gather(x, group=group or dist.group.WORLD))


def gather(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Concatenate the batches of all processes without gradient, e.g. target ids.

    Args:
        x: the same shape on every rank. Shape (B, ...).
        group: the processes to gather over; None is all of them.

    Returns:
        Shape (W * B, ...), in rank order; `x` itself, detached, in a single process.
    """
    x = x.detach()
    if world_size(group) == 1:
        return x
    pieces = [
        torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size(group))
    ]
    dist.all_gather(pieces, x.contiguous(), group=group)
    return torch.cat(pieces)


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor | None:
    """Collect on rank 0 any number of rows from each process, in rank order.

    Args:
        rows: CPU tensor; type and trailing shape must agree between ranks, the number of rows
            need not, and may be 0. Shape (N, ...).
        group: the processes to gather over; None is all of them.

    Returns:
        On rank 0 a CPU tensor of shape (N_0 + N_1 + ..., ...), on the others None.

    Raises:
        ValueError: on every rank, if type or trailing shape differ (before anything is sent).
    """
    if world_size(group) == 1:
        return rows
    layouts = all_gather_object((len(rows), tuple(rows.shape[1:]), rows.dtype), group)
    if len({layout[1:] for layout in layouts}) > 1:
        raise ValueError(f"rows differ between processes: {layouts}")
    counts = [layout[0] for layout in layouts]
    row_bytes = max(1, rows[:0].element_size() * rows.shape[1:].numel())
    step = max(1, (CHUNK_MIB << 20) // row_bytes)
    parts: list[list[Tensor]] = [[] for _ in counts]
    for start in range(0, max(counts), step):
        pieces = _gather_padded(rows[start : start + step], min(step, max(counts) - start), group)
        for part, piece, count in zip(parts, pieces, counts, strict=False):
            part.append(piece[: max(0, count - start)])
    if rank(group) != 0:
        return None
    return torch.cat([piece for part in parts for piece in part]) if max(counts) else rows


def broadcast_object(value: T, group: dist.ProcessGroup | None = None) -> T:
    """Give every process the picklable value that rank 0 holds."""
    if world_size(group) == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, group_src=0, group=group)
    return box[0]


def all_gather_object(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The picklable values of all processes, in rank order, on every process."""
    if world_size(group) == 1:
        return [value]
    values: list[T] = [value] * world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def together(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Do a share of some work on every process; what fails on one ends all of them.

    Without it the others would wait for the failed one in their next collective.

    Args:
        work: no collectives inside.
        group: the processes.

    Raises:
        Exception: what this process raised; else a `UserError` of the first process that failed,
            or a `RuntimeError` that tells of anything else.
    """
    error: Exception | None = None
    result: T | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    told = error if isinstance(error, UserError | None) else _travelling(error)
    failures = all_gather_object(told, group)
    if error is not None:
        raise error
    for failure in failures:
        if failure is not None:
            raise failure
    return cast(T, result)


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, which alone does it, on every process; its error on all.

    Args:
        work: its result can be pickled. No collectives inside.
    """
    value = together(lambda: work() if rank() == 0 else None)
    return cast(T, broadcast_object(value))


def _travelling(error: Exception) -> RuntimeError:
    """What other processes are told: not every exception can be pickled."""
    return RuntimeError(f"process {rank()} failed: {type(error).__name__}: {error}")


def _gather_padded(rows: Tensor, height: int, group: dist.ProcessGroup | None) -> list[Tensor]:
    """Equal-sized pieces of all ranks, on the CPU of rank 0; an empty list elsewhere."""
    # NCCL moves only tensors of its own device, gloo serves the CPU.
    backend = dist.get_backend(group)
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else "cpu"
    padded = torch.zeros((height, *rows.shape[1:]), dtype=rows.dtype, device=device)
    padded[: len(rows)] = rows
    pieces = (
        [torch.empty_like(padded) for _ in range(world_size(group))] if rank(group) == 0 else None
    )
    dist.gather(padded, pieces, group=group, group_dst=0)
    return [piece.cpu() for piece in pieces] if pieces else []
