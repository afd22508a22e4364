"""Lightning's sharding strategies, made to fit what this repository's methods are.

They shard by layer without a word in the method, and their checkpoints are those of every other
strategy: one file, only what was learned, the optimiser numbered as a plain one. So a run goes on
under another strategy or number of processes, and every command reads its checkpoints.
Lightning's own would gather and write the frozen weights too, number the optimiser's state by
all parameters where a plain optimiser has the trainable ones, and load weights before anything
has looked at them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    OptimStateKeyType,
    StateDictType,
)
from torch.optim import Optimizer
from transformers.modeling_layers import GradientCheckpointingLayer

from cirlab.checkpoints import is_in_parts, read_checkpoint, remove_parts
from cirlab.errors import UserError
from lightning_modules.learner import Learner
from lightning_modules.sharding import (
    gathered,
    layers,
    load_whole_optimizer,
    load_whole_state,
    shard,
    whole_on_every_process,
    whole_state,
)


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes, on GPUs or, for trying it out, on CPU cores.

    Args:
        save_distributed_checkpoint: every process writes its own part, into a folder, instead
            of rank 0 all into one file: for methods that train billions of weights.
        process_group_backend: torch's; null takes nccl on GPUs and gloo on CPUs.
        timeout: of a collective.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        method = _learner(self)
        method.keep_layout()
        shard(method, self.device_mesh["data_parallel"])
        super().setup(trainer)

    def teardown(self) -> None:
        super().teardown()
        # torch caches layouts of tensors, with their meshes and what these hold: groups of
        # processes, whose threads would outlive the program (`cirlab.distributed.leave`).
        getattr(self._device_mesh, "_pg_registry", {}).clear()

    # ---- checkpoints --------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        method = _learner(self)
        learned = method.layout().learned
        if self._save_distributed_checkpoint:
            return {name: value for name, value in method.state_dict().items() if name in learned}
        return whole_state(method, learned, keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer | LightningOptimizer) -> dict[str, Any]:
        state = _plain(optimizer).state_dict()
        return state if self._save_distributed_checkpoint else gathered(state)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        _make_way(self, filepath, folder=self._save_distributed_checkpoint)
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(self.broadcast(checkpoint_path)))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        load_whole_state(_learner(self), checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            load_whole_optimizer(optimizer, state)


class FSDP1Strategy(FSDPStrategy):
    """FSDP1 over all processes: each layer's weights in one flat vector, of one data type.

    Its checkpoints are single files. torch means it for GPUs.

    Args:
        sharding_strategy: torch's; FULL_SHARD divides weights, gradients and optimiser,
            SHARD_GRAD_OP all but the weights.
        cpu_offload: keep the parts in host memory between uses.
        process_group_backend: torch's; null takes nccl on GPUs.
        timeout: of a collective.
    """

    def __init__(
        self,
        sharding_strategy: Literal["FULL_SHARD", "SHARD_GRAD_OP"] = "FULL_SHARD",
        cpu_offload: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            auto_wrap_policy={GradientCheckpointingLayer},
            sharding_strategy=sharding_strategy,
            cpu_offload=cpu_offload,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def _setup_model(self, model: nn.Module) -> nn.Module:
        method = _learner(self)
        method.keep_layout()
        _check_data_types(method)
        whole = whole_on_every_process(method)
        for parameter in whole:
            parameter.data = parameter.data.to(self.root_device)
        return FullyShardedDataParallel(
            model,
            device_id=self.root_device,
            cpu_offload=self.cpu_offload,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            ignored_states=list(whole),
            **self.kwargs,
        )

    # ---- checkpoints --------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        learned = _learner(self).layout().learned
        state = {n: value.detach().cpu() for n, value in self._buffers() if n in learned}
        for unit, names in self._units().items():
            with self._together(unit, names, writeback=False) as own:
                found = {n: p for n, p in own.items() if n in learned and self.is_global_zero}
                # A process lets go of what it does not hold by itself.
                state |= {n: parameter.detach().cpu().clone() for n, parameter in found.items()}
        return state

    def optimizer_state(self, optimizer: Optimizer | LightningOptimizer) -> dict[str, Any]:
        optimizer, root = _plain(optimizer), self._root
        with self._whole(rank0_only=True):
            state = FullyShardedDataParallel.optim_state_dict(root, optimizer)
            if not self.is_global_zero:
                return state
            return FullyShardedDataParallel.rekey_optim_state_dict(
                state, OptimStateKeyType.PARAM_ID, root, optim=optimizer
            )

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        _make_way(self, filepath, folder=False)
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(self.broadcast(checkpoint_path)))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        state = checkpoint["state_dict"]
        for name, buffer in self._buffers():
            if name in state:
                buffer.copy_(state[name])
        for unit, names in self._units().items():
            with torch.no_grad(), self._together(unit, names, writeback=True) as own:
                for name in own.keys() & state.keys():
                    own[name].copy_(state[name])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        root = self._root
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            with self._whole(rank0_only=False):
                named = FullyShardedDataParallel.rekey_optim_state_dict(
                    state, OptimStateKeyType.PARAM_NAME, root, optim=optimizer
                )
                parts = FullyShardedDataParallel.optim_state_dict_to_load(root, optimizer, named)
            optimizer.load_state_dict(parts)

    @property
    def _root(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _buffers(self) -> list[tuple[str, torch.Tensor]]:
        return [(_unwrapped(name), value) for name, value in self._root.named_buffers()]

    def _units(self) -> dict[FullyShardedDataParallel, list[str]]:
        """The sharded groups with the state-dict names of their parameters."""
        owner: dict[str, FullyShardedDataParallel] = {}
        for prefix, unit in self._root.named_modules():
            if isinstance(unit, FullyShardedDataParallel):
                # An inner group comes after the one around it.
                owner |= {_unwrapped(n): unit for n, _ in unit.named_parameters(prefix=prefix)}
        units: dict[FullyShardedDataParallel, list[str]] = {}
        for name, unit in owner.items():
            units.setdefault(unit, []).append(name)
        return units

    @contextmanager
    def _together(
        self, unit: FullyShardedDataParallel, names: list[str], *, writeback: bool
    ) -> Iterator[dict[str, torch.Tensor]]:
        """A group's parameters, whole, by their state-dict names."""
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=writeback):
            every = {_unwrapped(n): value for n, value in self._root.named_parameters()}
            yield {name: every[name] for name in names}

    def _whole(self, *, rank0_only: bool) -> AbstractContextManager[Any]:
        """A context in which state dicts are whole and on the CPU."""
        return FullyShardedDataParallel.state_dict_type(
            self._root,
            StateDictType.FULL_STATE_DICT,
            FullStateDictConfig(offload_to_cpu=True, rank0_only=rank0_only),
            FullOptimStateDictConfig(offload_to_cpu=True, rank0_only=rank0_only),
        )


def _learner(strategy: FSDPStrategy | ModelParallelStrategy) -> Learner:
    method = strategy.lightning_module
    if not isinstance(method, Learner):
        raise UserError(
            f"{type(strategy).__name__} shards methods of lightning_modules, and "
            f"{type(method).__name__} is none; use --trainer.strategy ddp"
        )
    return method


def _unwrapped(name: str) -> str:
    """A parameter's name without the wrappers that FSDP1 puts around modules."""
    return name.replace("_fsdp_wrapped_module.", "")


def _make_way(
    strategy: FSDPStrategy | ModelParallelStrategy, filepath: str | Path, *, folder: bool
) -> None:
    """Remove what the new checkpoint cannot replace: a folder, whole or half, or a file by one.

    New parts among old ones would be read as a checkpoint. Lightning has every process remove
    whole folders at once, and all but the first fail.
    """
    path = Path(strategy.broadcast(filepath))
    if strategy.is_global_zero:
        if is_in_parts(path):
            remove_parts(path)
        elif folder:
            path.unlink(missing_ok=True)
    strategy.barrier()


def _plain(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def _check_data_types(method: nn.Module) -> None:
    """Refuse layers whose weights differ in type, as half-precision weights with adapters do.

    Raises:
        UserError: it names both types.
    """
    for layer in layers(method):
        found: set[torch.dtype] = {parameter.dtype for parameter in layer.parameters()}
        if len(found) > 1:
            raise UserError(
                f"FSDP needs one data type in a layer, and a {type(layer).__name__} has "
                f"{' and '.join(sorted(map(str, found)))} (base weights and adapters); use "
                "-c experiments/overlays/fsdp2.yaml, or set model.init_args.llm.dtype: float32"
            )
