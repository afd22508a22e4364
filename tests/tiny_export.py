"""Checkpoints in which everything that is learned has moved, their export, and its model card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.command.checkpoint_config import CONFIG
from cirlab.command.export import Export
from lightning_modules.learned_weights import FROZEN_BASE, FROZEN_FINGERPRINT
from lightning_modules.learner import Learner


def learned(module: Learner, path: Path) -> Path:
    """A checkpoint of `module`, which is built and holds the same weights."""
    module.configure_model()
    torch.manual_seed(3)
    with torch.no_grad():
        parameters = dict(module.named_parameters())
        for name in sorted(module.learned_names() & parameters.keys()):
            parameters[name].normal_(std=0.1)
    state: dict[str, Any] = {"state_dict": module.state_dict(), "epoch": 2, "global_step": 7}
    module.on_save_checkpoint(state)
    assert {FROZEN_BASE, FROZEN_FINGERPRINT} <= state.keys()
    class_path = f"lightning_modules.{type(module).__name__}"
    data = {"class_path": "datamodules.WorldData", "init_args": {"records": "pairs"}}
    state[CONFIG] = {"model": {"class_path": class_path}, "data": data}
    torch.save(state, path)
    module.eval()
    return path


def export(module: Learner, checkpoint: Path, output: Path, merged: bool) -> Path:
    """The folder that is made of a checkpoint and a module of its configuration."""
    return Export(checkpoint, "tiny", {}, output, merged).run(module)


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the model card's code defines, run as a reader would, within the folder."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    assert not re.search(r"^(import|from) (cirlab|lightning)", code, re.MULTILINE)
    names: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code, str(folder / "README.md"), "exec"), names)
    return names
