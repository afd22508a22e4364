"""Every experiment of this repository reads, builds and explains itself."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from cirlab.cli import RetrievalCLI
from cirlab.command.configuration import EXPERIMENTS, config_files, experiment_names, with_base
from cirlab.command.references import read_config
from cirlab.encoders.adapters import FourBit, Lora
from cirlab.errors import UserError
from lightning_modules.strategies import FSDP1Strategy, FSDP2Strategy

FILES = sorted(EXPERIMENTS.rglob("*.yaml"))
#: A machine with one processor, whatever the experiment asks for.
SMALL = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1"]
SMALL += ["--trainer.strategy=auto"]


@pytest.mark.parametrize("name", experiment_names())
def test_experiment_builds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, data, callbacks and trainer are made of it; weights and data are not needed."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RetrievalCLI, "_run_subcommand", lambda self, subcommand: None)
    cli = built("fit", name)
    if not cli.model.train_record:
        # It learns nothing: all that can be done with it is to evaluate it, without a checkpoint.
        cli = built("validate", name)
        assert cli.checkpoint is None
        assert cli.datamodule.benchmarks
        assert {benchmark.kind for benchmark in cli.datamodule.benchmarks} <= cli.model.query_kinds
    assert cli.experiment == name
    assert cli.datamodule is not None
    assert list(tmp_path.iterdir()) == [], "building wrote something"


def built(subcommand: str, name: str) -> RetrievalCLI:
    args = with_base([subcommand, "-c", str(EXPERIMENTS / f"{name}.yaml"), *SMALL])
    return RetrievalCLI(args, [read_config(path) for path in config_files(args)])


#: Experiments with an adapted language model, which strategies divide among processes.
LLM_EXPERIMENTS = [name for name in experiment_names() if name in ("collm", "collm_finetune")]
LLM_EXPERIMENTS += [name for name in experiment_names() if name.startswith("instructcir")]


def read(name: str, overlay: str, *options: str) -> RetrievalCLI:
    files = [EXPERIMENTS / f"{name}.yaml", EXPERIMENTS / "overlays" / f"{overlay}.yaml"]
    args = with_base(["fit", *(part for file in files for part in ("-c", str(file))), *options])
    return RetrievalCLI(args, [read_config(path) for path in config_files(args)])


@pytest.fixture
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(RetrievalCLI, "_run_subcommand", lambda self, subcommand: None)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("name", LLM_EXPERIMENTS)
@pytest.mark.parametrize(("overlay", "strategy"), [("ddp", DDPStrategy), ("fsdp2", FSDP2Strategy)])
def test_strategies_come_after_any_experiment_of_an_llm(
    name: str, overlay: str, strategy: type
) -> None:
    cli = read(name, overlay, "--trainer.accelerator=cpu")
    assert cli.experiment == name
    assert type(cli.trainer.strategy) is strategy
    assert cli.trainer.num_devices == 2


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("name", LLM_EXPERIMENTS)
def test_qlora_comes_after_any_experiment_of_an_llm(name: str) -> None:
    settings = read(name, "qlora", *SMALL).model.llm_settings
    assert settings.name == read(name, "ddp", *SMALL).model.llm_settings.name
    assert settings.four_bit == FourBit("nf4", True, "bfloat16")
    assert settings.lora == Lora(64, 16, 0.1, "all-linear")
    assert settings.gradient_checkpointing and not settings.frozen


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("name", LLM_EXPERIMENTS)
def test_fsdp_comes_after_any_experiment_of_an_llm(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"accelerator is gpu, but torch finds no such device"):
        read(name, "fsdp")
    # Without GPUs Lightning makes no trainer for them; all up to it is made.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(RetrievalCLI, "_instantiate_trainer", lambda self, config, _: config)
    trainer = cast("dict[str, Any]", read(name, "fsdp").trainer)
    assert type(trainer["strategy"]) is FSDP1Strategy
    assert trainer["gradient_clip_val"] is None


def uncommented(text: str) -> list[str]:
    """Lines that give a key a value and say nothing about it, class names aside."""
    lines = text.splitlines()
    return [
        line.strip()
        for above, line in zip(["", *lines], lines, strict=False)
        if re.match(r"\s*(- )?[\w+]+: *[^#\s]", line)
        and not re.match(r"\s*(- )?class_path:", line)
        and "#" not in line
        and not above.strip().startswith("#")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(EXPERIMENTS).as_posix())
def test_every_key_is_explained(path: Path) -> None:
    assert uncommented(path.read_text(encoding="utf-8")) == []


def test_the_check_sees_what_is_not_explained() -> None:
    text = "a: 1\nb:\n  c: 2  # of c\n  # of d\n  d: 3\n  - class_path: x.Y\n  - e: [4]\n"
    assert uncommented(text) == ["a: 1", "- e: [4]"]
