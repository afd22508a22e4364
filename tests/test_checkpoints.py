"""One file and a folder of parts are read alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import save

from cirlab.checkpoints import METADATA, is_checkpoint, read_checkpoint

WEIGHTS = {"adapter.weight": torch.arange(6.0).reshape(2, 3)}
OPTIMIZER = {
    "state": {0: {"momentum_buffer": torch.ones(2, 3)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}
REST = {"global_step": 7, "frozen_base": {"llm": "zoo:tiny_llm"}}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", ["state_dict", "model"])
def test_a_folder_is_read_as_a_file(name: str, tmp_path: Path) -> None:
    file, folder = tmp_path / "file.ckpt", tmp_path / "folder.ckpt"
    torch.save({"state_dict": WEIGHTS, "optimizer_states": [OPTIMIZER], **REST}, file)
    save({name: WEIGHTS, "optimizer_0": OPTIMIZER}, checkpoint_id=folder, no_dist=True)
    assert not is_checkpoint(folder), "the last of it is not yet written"
    torch.save(REST, folder / METADATA)
    assert is_checkpoint(file) and is_checkpoint(folder)
    whole, parts = read_checkpoint(file), read_checkpoint(folder)
    assert whole.keys() == parts.keys()
    assert torch.equal(parts["state_dict"]["adapter.weight"], WEIGHTS["adapter.weight"])
    (optimizer,) = parts["optimizer_states"]
    assert optimizer["param_groups"] == OPTIMIZER["param_groups"]
    assert torch.equal(optimizer["state"][0]["momentum_buffer"], torch.ones(2, 3))
    assert parts["global_step"] == 7
