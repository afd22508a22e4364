"""overlays/qlora.yaml trains, checkpoints and evaluates a tiny experiment on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from cirlab.cli import main
from cirlab.command.configuration import EXPERIMENTS
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.encoders.llm import EmbeddingLLM
from tests.tiny_run import BENCHMARK, tiny_experiment

OVERLAY = str(EXPERIMENTS / "overlays" / "qlora.yaml")


def test_qlora_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_experiment(tmp_path, trainer={"max_epochs": 1})
    config = yaml.safe_load(path.read_text())
    # Many processors emulate bfloat16.
    config["data"]["init_args"] |= {"samples": 16, "batch_size": 8}
    config["data"]["init_args"]["benchmarks"][0]["init_args"]["scenes"] = 12
    llm = {"name": "zoo:tiny_llm"}
    collm = {"clip": "zoo:tiny_clip", "llm": llm, "chunk_size": 6}
    config["model"] = {"class_path": "lightning_modules.CoLLM", "init_args": collm}
    path.write_text(yaml.safe_dump(config))

    assert main(["fit", "-c", str(path), "-c", OVERLAY]) == 0
    table = capsys.readouterr().out
    assert "nf4 (4-bit)" in table and "llm, adapters" in table
    run = tmp_path / "runs" / "tiny" / "version_0"
    last = run / "checkpoints" / "last.ckpt"
    learned = torch.load(last, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in learned.values())
    assert any("lora_B" in name and value.any() for name, value in learned.items())
    assert {n.split(".")[0] for n in learned if ".lora_" not in n} == {"adapter", "projection"}
    record = json.loads((run / "run.json").read_text())
    assert record["trained_parameters"] == sum(value.numel() for value in learned.values())
    frozen = (EmbeddingLLM("zoo:tiny_llm"), load_dual_encoder("zoo:tiny_clip"))
    # All of the LLM's weights, not the bytes that hold two of them each.
    whole = sum(p.numel() for module in frozen for p in module.parameters())
    assert record["parameters"] == record["trained_parameters"] + whole

    ours = json.loads((run / "results.json").read_text())
    assert main(["validate", "-c", str(path), "-c", OVERLAY, "--ckpt_path", str(last)]) == 0
    assert "nf4 (4-bit)" in capsys.readouterr().out
    again = json.loads((tmp_path / "runs/tiny/version_1/results.json").read_text())
    assert again[BENCHMARK] == ours[BENCHMARK]
