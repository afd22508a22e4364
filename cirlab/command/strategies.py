"""Whether a strategy can do what a configuration asks of it, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from cirlab.command.devices import number_of_devices, runs_on_cpu
from cirlab.errors import UserError

#: What `experiments/overlays/<name>.yaml` sets as strategy.
OVERLAYS = {"FSDP1Strategy": "fsdp", "FSDP2Strategy": "fsdp2"}
#: Lightning's own, which would have to be told a method's layers, and the overlay to take instead.
_LIGHTNINGS = {
    "fsdp": "fsdp",
    "fsdp_cpu_offload": "fsdp",
    "FSDPStrategy": "fsdp",
    "ModelParallelStrategy": "fsdp2",
}
_TENSORS = "tensor_parallel_size"


def check_strategy(config: Mapping[str, Any]) -> None:
    """Refuse settings that do not go together.

    Args:
        config: of a run, as plain values.

    Raises:
        UserError: it names the settings and what to change.
    """
    trainer, model = config["trainer"], config["model"]
    check_processes(trainer)
    name, arguments = _named(trainer.get("strategy"))
    if arguments.get(_TENSORS, 1) != 1:
        raise UserError(
            f"trainer.strategy has {_TENSORS} {arguments[_TENSORS]}, but no method here is divided "
            f"within its layers; use {_overlay('fsdp2')}, which shards over all processes"
        )
    if name in _LIGHTNINGS:
        raise UserError(
            f"trainer.strategy is Lightning's own {name}, which does not know a method's layers; "
            f"use {_overlay(_LIGHTNINGS[name])}"
        )
    if name not in OVERLAYS:
        return
    _check_method(name, model)
    if name == "FSDP1Strategy":
        _check_fsdp1(trainer, model)
    elif str(trainer.get("precision")) in ("16", "16-mixed"):
        raise UserError(
            f"trainer.precision is {trainer['precision']}, which {name} does not scale; use "
            "--trainer.precision bf16-mixed"
        )


def _check_method(strategy: str, model: Mapping[str, Any]) -> None:
    module, _, method = model["class_path"].rpartition(".")
    if not getattr(getattr(import_module(module), method), "shardable", False):
        raise UserError(
            f"trainer.strategy {strategy} cannot shard {method}, which is small and writes its "
            "weights whole; use --trainer.strategy ddp"
        )
    quantised = next(_four_bit("model.init_args", model.get("init_args") or {}), None)
    if quantised is not None:
        raise UserError(
            f"{quantised} is set, but trainer.strategy {strategy} cannot shard 4-bit weights; use "
            f"--trainer.strategy ddp, or --{quantised} null"
        )


def _check_fsdp1(trainer: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    if runs_on_cpu(str(trainer.get("accelerator", "auto"))):
        raise UserError(
            "trainer.strategy FSDP1Strategy needs GPUs, and this run takes the CPU; use "
            f"{_overlay('fsdp2')}, which runs on both"
        )
    llm = (model.get("init_args") or {}).get("llm") or {}
    if llm.get("lora") and llm.get("dtype", "float32") != "float32":
        raise UserError(
            f"model.init_args.llm.dtype is {llm['dtype']}, but FSDP1Strategy holds each layer in "
            f"one type and adapters are float32; use {_overlay('fsdp2')}, or "
            "--model.init_args.llm.dtype float32"
        )
    clips = trainer.get("gradient_clip_val")
    if clips and trainer.get("gradient_clip_algorithm") != "value":
        raise UserError(
            f"trainer.gradient_clip_val is {clips}, but FSDP1Strategy cannot clip by the norm of "
            f"a gradient that no process has whole; use {_overlay('fsdp2')}, or "
            "--trainer.gradient_clip_val null"
        )


def _overlay(name: str) -> str:
    return f"-c experiments/overlays/{name}.yaml"


def _named(strategy: Any) -> tuple[str, Mapping[str, Any]]:
    """Class or short name of a strategy, and its arguments."""
    if isinstance(strategy, Mapping):
        name = str(strategy.get("class_path", "")).rpartition(".")[2]
        return name, strategy.get("init_args") or {}
    return str(strategy), {}


def _four_bit(place: str, arguments: Any) -> Iterator[str]:
    """Where a method's arguments ask for 4-bit weights, dotted."""
    for key, value in arguments.items() if isinstance(arguments, Mapping) else ():
        if key == "four_bit" and value:
            yield f"{place}.{key}"
        yield from _four_bit(f"{place}.{key}", value)


# ---- who starts the processes ------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """What a launcher has started.

    Attributes:
        by: its name.
        per_node: processes on each machine; None where it does not say.
        nodes: machines; None where it does not say.
        options: of the launcher that decide the two.
    """

    by: str
    per_node: int | None
    nodes: int | None
    options: tuple[str, str]


def check_processes(trainer: Mapping[str, Any]) -> None:
    """Refuse numbers of processes that differ from those that torchrun or SLURM has started.

    Raises:
        UserError: it names both numbers.
    """
    nodes = int(trainer.get("num_nodes") or 1)
    accelerator = str(trainer.get("accelerator", "auto"))
    devices = number_of_devices(accelerator, trainer.get("devices", "auto"))
    started = _started()
    if started is None:
        if nodes > 1 and "MASTER_ADDR" not in os.environ:
            raise UserError(
                f"trainer.num_nodes is {nodes}, but nothing says where the other machines are; "
                "start the run on each of them with torchrun, or with srun (docs/scaling.md)"
            )
        return
    for key, configured, there, option in (
        ("devices", devices, started.per_node, started.options[0]),
        ("num_nodes", nodes, started.nodes, started.options[1]),
    ):
        if there is not None and configured not in (None, there):
            raise UserError(
                f"trainer.{key} is {trainer.get(key, configured)}, but {started.by} was given "
                f"{option} {there}; use --trainer.{key} {there}"
            )


def _started() -> Started | None:
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        per_node, all_of_them = (int(environment[n]) for n in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        options = ("--nproc-per-node", "--nnodes")
        return Started("torchrun", per_node, all_of_them // per_node, options)
    # Lightning takes jobs of these names for shells, in which one starts processes by hand.
    if "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in (
        "bash",
        "interactive",
    ):
        tasks, nodes = (environment.get(f"SLURM_{n}") for n in ("NTASKS_PER_NODE", "NNODES"))
        options = ("--ntasks-per-node", "--nodes")
        return Started(
            "SLURM", int(tasks) if tasks else None, int(nodes) if nodes else None, options
        )
    return None
