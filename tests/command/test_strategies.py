from __future__ import annotations

from typing import Any

import pytest
import torch

from cirlab.command.strategies import check_strategy
from cirlab.errors import UserError

LLM = {"name": "zoo:tiny_llm", "lora": {"rank": 4}, "four_bit": None}
COLLM = {"class_path": "lightning_modules.CoLLM", "init_args": {"llm": LLM}}
LAUNCHERS = (
    "TORCHELASTIC_RUN_ID",
    "LOCAL_WORLD_SIZE",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "SLURM_NTASKS",
    "SLURM_JOB_NAME",
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def strategy(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"lightning_modules.strategies.{name}", "init_args": arguments}


def config(strategy: Any, model: dict[str, Any] = COLLM, **trainer: Any) -> dict[str, Any]:
    settings = {"accelerator": "cpu", "devices": 2, "num_nodes": 1, "precision": "bf16-mixed"}
    return {"trainer": settings | trainer | {"strategy": strategy}, "model": model}


def test_what_goes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    quantised = {**COLLM, "init_args": {"llm": LLM | {"four_bit": {"quant_type": "nf4"}}}}
    check_strategy(config("auto", devices=1))
    check_strategy(config("ddp", quantised, gradient_clip_val=1.0))
    check_strategy(config(strategy("FSDP2Strategy"), gradient_clip_val=1.0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_strategy(config(strategy("FSDP1Strategy"), accelerator="gpu"))
    by_value = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}
    check_strategy(config(strategy("FSDP1Strategy"), accelerator="gpu", **by_value))


CLIP = {"class_path": "lightning_modules.CLIP", "init_args": {"model": "zoo:tiny_clip"}}
QUANTISED = {**COLLM, "init_args": {"llm": LLM | {"four_bit": {"quant_type": "nf4"}}}}
PARTS = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}
REFUSED = [
    (
        config(strategy("FSDP2Strategy"), QUANTISED),
        r"model\.init_args\.llm\.four_bit is set, .* --trainer\.strategy ddp",
    ),
    (config(strategy("FSDP1Strategy"), QUANTISED, accelerator="gpu"), r"cannot shard 4-bit"),
    (
        config(
            strategy("FSDP1Strategy"),
            {**COLLM, "init_args": {"llm": LLM | {"dtype": "bfloat16"}}},
            accelerator="gpu",
        ),
        r"llm\.dtype is bfloat16, .*overlays/fsdp2\.yaml",
    ),
    (config(strategy("FSDP1Strategy")), r"needs GPUs, .*overlays/fsdp2\.yaml"),
    (
        config(strategy("FSDP1Strategy"), accelerator="gpu", gradient_clip_val=1.0),
        r"gradient_clip_val is 1\.0, .* --trainer\.gradient_clip_val null",
    ),
    (config(strategy("FSDP2Strategy"), CLIP), r"cannot shard CLIP, .* --trainer\.strategy ddp"),
    (config(strategy("FSDP2Strategy"), precision="16-mixed"), r"precision is 16-mixed"),
    (config("fsdp"), r"Lightning's own fsdp, .*overlays/fsdp\.yaml"),
    (config(PARTS), r"Lightning's own ModelParallelStrategy, .*overlays/fsdp2\.yaml"),
    (
        config(PARTS | {"init_args": {"data_parallel_size": 1, "tensor_parallel_size": 2}}),
        r"tensor_parallel_size 2, .*overlays/fsdp2\.yaml",
    ),
    (config("ddp", num_nodes=2), r"num_nodes is 2, .* torchrun"),
]


@pytest.mark.parametrize(("refused", "sentence"), REFUSED)
def test_what_does_not_go_together(refused: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_strategy(refused)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"}


@pytest.mark.parametrize("launcher", [TORCHRUN, SLURM], ids=["torchrun", "slurm"])
def test_processes_are_those_that_were_started(
    launcher: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    check_strategy(config("ddp", num_nodes=2))
    with pytest.raises(UserError, match=r"devices is 1, .* 2; use --trainer\.devices 2"):
        check_strategy(config("ddp", num_nodes=2, devices=1))
    with pytest.raises(UserError, match=r"devices is auto, .* 2; use --trainer\.devices 2"):
        check_strategy(config("ddp", num_nodes=2, devices="auto"))
    with pytest.raises(UserError, match=r"num_nodes is 1, .* 2; use --trainer\.num_nodes 2"):
        check_strategy(config("ddp"))


def test_a_shell_in_a_job_starts_processes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (SLURM | {"SLURM_JOB_NAME": "interactive"}).items():
        monkeypatch.setenv(name, value)
    check_strategy(config("ddp", devices=1))
