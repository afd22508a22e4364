"""A method's weights divided among processes, layer by layer (fully sharded data parallel).

Of every layer each process keeps a part; the whole layer is put together where it is computed
and let go after it (Zhao et al., PyTorch FSDP, VLDB 2023). A layer is a decoder or vision layer
of transformers, which all derive from one class. What trains outside the layers (projections,
adapters of a tower, learned scales) is sharded as one group, so that its gradient is averaged
over the processes like everything else's. What is frozen outside the layers stays whole: it is
small beside the layers, and other code may call it between two steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import _pytree as pytree
from transformers.modeling_layers import GradientCheckpointingLayer

from cirlab.errors import UserError

#: What of a method its trainer and its callbacks call; the sharded group is whole inside.
ENTRANCES = ("training_step", "validation_step", "test_step", "predict_step", "rerank")


def layers(method: nn.Module) -> Sequence[nn.Module]:
    """The layers to be sharded, innermost first.

    Raises:
        UserError: the method has none.
    """
    found = [
        module
        for module in method.modules()
        if isinstance(module, GradientCheckpointingLayer) and any(True for _ in module.parameters())
    ]
    if not found:
        raise UserError(
            f"trainer.strategy shards layers of transformers models, but {type(method).__name__} "
            "as configured has none; use --trainer.strategy ddp"
        )
    return found[::-1]


def whole_on_every_process(method: nn.Module) -> set[nn.Parameter]:
    """The parameters that are not sharded: those frozen outside the layers."""
    inside = {parameter for layer in layers(method) for parameter in layer.parameters()}
    return {p for p in method.parameters() if not p.requires_grad and p not in inside}


def check_shardable(method: nn.Module) -> None:
    """Refuse what torch would refuse in the first step, or not at all.

    Raises:
        UserError: the method has no layers, learns a single number, which cannot be divided, or
            learns numbers of several types in one group.
    """
    for name, parameter in method.named_parameters():
        if parameter.ndim == 0 and parameter.requires_grad:
            raise UserError(
                f"{name} is a parameter without dimensions, which cannot be sharded; give it the "
                "shape (1,)"
            )
    inside = {parameter for layer in layers(method) for parameter in layer.parameters()}
    outside = [parameter for parameter in method.parameters() if parameter not in inside]
    for group in (outside, *(list(layer.parameters()) for layer in layers(method))):
        types = sorted({str(parameter.dtype) for parameter in group if parameter.requires_grad})
        if len(types) > 1:
            raise UserError(
                f"{type(method).__name__} trains weights of types {' and '.join(types)}, which "
                "cannot be sharded together; set model.init_args.llm.dtype: float32, or "
                "llm.lora, whose adapters are float32 in any model"
            )


def shard(method: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a method's layers and what else trains (FSDP2), in place; again: nothing.

    Args:
        method: its weights are built and loaded, the same on every process.
        mesh: of one dimension, the data-parallel processes.

    Raises:
        UserError: it cannot be sharded.
    """
    if isinstance(method, FSDPModule):
        return
    check_shardable(method)
    whole = whole_on_every_process(method)
    for layer in layers(method):
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    called = type(method).__name__
    fully_shard(method, mesh=mesh, ignored_params=whole)
    # torch gives it a class of its own, whose name would enter records and messages.
    type(method).__name__ = called
    for name in ENTRANCES:
        if hasattr(method, name):
            register_fsdp_forward_method(method, name)


def gathered(value: Any) -> Any:
    """A value with all its sharded tensors put together, on the CPU; every process takes part."""
    return pytree.tree_map_only(DTensor, lambda shards: shards.full_tensor().cpu(), value)


def whole_state(module: nn.Module, names: Iterable[str], keep: bool) -> dict[str, torch.Tensor]:
    """Named weights of a sharded module, put together one after the other.

    Args:
        module: sharded; every process takes part.
        names: of its state dict.
        keep: whether this process holds on to them; else it returns nothing.
    """
    state, whole = module.state_dict(), {}
    for name in sorted(set(names) & state.keys()):
        value = gathered(state[name])
        if keep:
            whole[name] = value.detach().cpu()
    return whole


@torch.no_grad()
def load_whole_state(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy whole weights into a sharded module; each process takes its part."""
    own = module.state_dict()
    for name in own.keys() & state.keys():
        own[name].copy_(_like(own[name], state[name]))


def load_whole_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimiser of sharded parameters the state that a plain one has saved.

    Args:
        optimizer: of parameters in the order of the saved ones.
        state: a state dict of `optimizer`'s class with whole tensors.
    """
    saved = [place for group in state["param_groups"] for place in group["params"]]
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parameters = dict(zip(saved, own, strict=True))
    parts = {
        place: {key: _moment(parameters[place], value) for key, value in values.items()}
        for place, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": parts})


def _moment(parameter: torch.Tensor, value: Any) -> Any:
    """A part of an optimiser's state: sharded if it has the parameter's shape."""
    if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
        return _like(parameter, value)
    return value


def _like(own: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """`whole`, sharded as `own` is. Every process has all of it, so nothing is sent."""
    if not isinstance(own, DTensor):
        return whole
    value = whole.to(own.device)
    return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)
