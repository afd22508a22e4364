"""What a model's parts are and what memory they take, known before the first step.

Bytes are those of the tensors that this process holds: quantised weights with their constants,
parts of sharded weights. What an optimiser will keep is found by a step on tensors without
storage, so that every optimiser answers for itself.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import Optimizer

MIB = 2**20
#: What wrappers add to the names of parameters.
_WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.")


@dataclass(frozen=True)
class PartSizes:
    """One part of a model.

    Attributes:
        name: of a direct child of the model, apart from or of its adapters.
        parameters: scalars, of all processes together.
        trainable: of these.
        dtypes: of the weights, the one with the most bytes first.
        weights: bytes, buffers included.
        gradients: bytes.
        optimizer: bytes of the optimiser's state; None if it cannot be known beforehand.
    """

    name: str
    parameters: int
    trainable: int
    dtypes: tuple[str, ...]
    weights: int
    gradients: int
    optimizer: int | None

    @property
    def bytes(self) -> int:
        """All that is known."""
        return self.weights + self.gradients + (self.optimizer or 0)


def parameter_count(
    parameter: torch.Tensor, name: str = "", shapes: Mapping[str, torch.Size] | None = None
) -> int:
    """Scalars of a parameter, however it is stored.

    Args:
        parameter: whole, sharded, or quantised.
        name: of it.
        shapes: of whole parameters by name, where the parameter itself does not know it.
    """
    quantised = getattr(parameter, "quant_state", None)
    if quantised is not None:
        return prod(quantised.shape)
    return prod((shapes or {}).get(name, parameter.shape))


def model_sizes(
    model: nn.Module,
    optimizers: Sequence[Optimizer] = (),
    shapes: Mapping[str, torch.Size] | None = None,
) -> list[PartSizes]:
    """Sizes of a model's direct children, those with adapters in two parts.

    Args:
        model: with its weights.
        optimizers: of it; none in an evaluation, which has no gradients either.
        shapes: see `parameter_count`.
    """
    states = [state_bytes(optimizer) for optimizer in optimizers]
    parts: dict[str, _Part] = {}
    counted: set[int] = set()
    for name, tensor in _named_tensors(model):
        part = parts.setdefault(_part_name(name), _Part())
        part.add(tensor, parameter_count(tensor, name, shapes), states, counted)
    adapted = {name.removesuffix(", adapters") for name in parts if name.endswith(", adapters")}
    return [
        part.sizes(f"{name}, base" if name in adapted else name)
        for name, part in parts.items()
        if part.parameters
    ]


def total(parts: Sequence[PartSizes]) -> PartSizes:
    """The sum of all parts."""
    known = [part.optimizer for part in parts]
    return PartSizes(
        name="all",
        parameters=sum(part.parameters for part in parts),
        trainable=sum(part.trainable for part in parts),
        dtypes=tuple(dict.fromkeys(dtype for part in parts for dtype in part.dtypes)),
        weights=sum(part.weights for part in parts),
        gradients=sum(part.gradients for part in parts),
        optimizer=None if None in known else sum(size or 0 for size in known),
    )


def state_bytes(optimizer: Optimizer) -> dict[int, int] | None:
    """What an optimiser will keep for each parameter, by the parameter's `id`.

    A copy of it takes a step over tensors of the same shapes, without storage where it can. None
    if it cannot step on a CPU either (kernels of its own).
    """
    found: dict[int, int] = {}
    for group in optimizer.param_groups:
        sizes: dict[tuple[torch.Size, torch.dtype], int | None] = {}
        for parameter in group["params"]:
            local = _local(parameter.detach())
            kind = local.shape, local.dtype
            if kind not in sizes:
                sizes[kind] = _probe(optimizer, group, local)
            size = sizes[kind]
            if size is None:
                return None
            found[id(parameter)] = size
    return found


def show_sizes(
    console: Console, title: str, parts: Sequence[PartSizes], processes: int = 1
) -> None:
    """Print the table of a training's parts.

    Args:
        console: where.
        title: what is trained.
        parts: their sizes.
        processes: among which the weights are divided; 1 where each has them all.
    """
    # Narrow enough for billions of parameters on a terminal of 80 columns.
    table = Table(box=SIMPLE_HEAD, padding=0)
    table.add_column("", no_wrap=True)
    table.add_column("stored")
    for column in ("parameters", "trained", "weights", "gradients", "optimiser", "sum"):
        table.add_column(column, justify="right", no_wrap=True)
    for part in parts:
        table.add_row(*_cells(part))
    if len(parts) > 1:
        table.add_section()
        table.add_row(*_cells(replace(total(parts), dtypes=())), style="bold")
    console.print(f"\n{title}", style="bold", soft_wrap=True, highlight=False)
    console.print(table)
    divided = f" for one of {processes} processes that divide them" if processes > 1 else ""
    unknown = "" if total(parts).optimizer is not None else "; -: not known of this optimiser"
    console.print(
        f"Weights, gradients and optimiser in MiB{divided}{unknown}. Activations come on top: they "
        "grow with the batch, or with chunk_size where that is set (docs/memory.md).",
        soft_wrap=True,
        highlight=False,
    )


def sizes_line(title: str, parts: Sequence[PartSizes]) -> str:
    """The same for an evaluation, in one line."""
    whole = total(parts)
    stored = ", ".join(whole.dtypes)
    return f"{title}: {_count(whole.parameters)} parameters, {_mib(whole.weights)} MiB ({stored})"


class _Part:
    """Sizes as they are counted."""

    def __init__(self) -> None:
        self.parameters = self.trainable = self.weights = self.gradients = 0
        self.optimizer: int | None = 0
        self.dtypes: dict[str, int] = defaultdict(int)

    def add(
        self,
        tensor: torch.Tensor,
        count: int,
        states: Sequence[dict[int, int] | None],
        counted: set[int],
    ) -> None:
        if id(tensor) in counted:
            return
        counted.add(id(tensor))
        size = sum(map(_size, _stored(tensor, counted)))
        self.weights += size
        if not isinstance(tensor, nn.Parameter):
            return
        self.parameters += count
        self.dtypes[_dtype(tensor)] += size
        if tensor.requires_grad:
            self.trainable += count
        for state in states:
            if state is None:
                self.optimizer = None if tensor.requires_grad else self.optimizer
            elif id(tensor) in state:
                self.optimizer = (self.optimizer or 0) + state[id(tensor)]
        if states and tensor.requires_grad:
            self.gradients += _size(_local(tensor))

    def sizes(self, name: str) -> PartSizes:
        dtypes = sorted(self.dtypes, key=lambda dtype: -self.dtypes[dtype])
        return PartSizes(
            name,
            self.parameters,
            self.trainable,
            tuple(dtypes),
            self.weights,
            self.gradients,
            self.optimizer,
        )


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        yield name, tensor


def _part_name(name: str) -> str:
    child = name.partition(".")[0]
    return f"{child}, adapters" if ".lora_" in name else child


def _stored(tensor: torch.Tensor, counted: set[int]) -> Iterable[torch.Tensor]:
    """The tensors that a weight consists of; a table that several share only once."""
    yield _local(tensor)
    quantised = getattr(tensor, "quant_state", None)
    while quantised is not None:
        for part in (quantised.absmax, quantised.code, quantised.offset):
            if isinstance(part, torch.Tensor) and part.data_ptr() not in counted:
                counted.add(part.data_ptr())
                yield part
        # Of double quantisation: the constants' own constants.
        quantised = quantised.state2


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of it."""
    to_local: Any = getattr(tensor, "to_local", None)
    local: torch.Tensor = tensor if to_local is None else to_local()
    return local


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _dtype(tensor: torch.Tensor) -> str:
    quantised = getattr(tensor, "quant_state", None)
    if quantised is not None:
        return f"{quantised.quant_type} (4-bit)"
    return str(tensor.dtype).removeprefix("torch.")


def _probe(optimizer: Optimizer, group: dict[str, Any], like: torch.Tensor) -> int | None:
    """Bytes that an optimiser keeps for one parameter of a group; None if they are not known."""
    for device in ("meta", "cpu"):
        stand_in = torch.zeros_like(like, device=device).requires_grad_()
        stand_in.grad = torch.zeros_like(stand_in, requires_grad=False)
        try:
            probe = copy.copy(optimizer)
            probe.param_groups = [{**group, "params": [stand_in]}]
            probe.state = defaultdict(dict)
            probe.step()
        except Exception:
            # Each fails in its own way, and a table is no reason to end a run.
            continue
        kept = probe.state[stand_in].values()
        return sum(_size(value) for value in kept if isinstance(value, torch.Tensor))
    return None


def _cells(part: PartSizes) -> list[str]:
    optimizer = "-" if part.optimizer is None else _mib(part.optimizer)
    counts = [_count(part.parameters), _count(part.trainable)]
    sizes = [_mib(part.weights), _mib(part.gradients), optimizer, _mib(part.bytes)]
    return [part.name, ", ".join(part.dtypes), *counts, *sizes]


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**6 else f"{number / 10**6:,.2f} M"


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f}"
