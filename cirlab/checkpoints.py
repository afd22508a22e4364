"""Checkpoints as they lie on disk: one file, or a folder into which every process wrote its part.

Sharded strategies may write folders (torch's distributed checkpoints, with what is no weight in
`meta.pt`); everything that reads a checkpoint reads both.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

#: What a sharded checkpoint holds beside weights and optimiser; Lightning's name for it.
METADATA = "meta.pt"
_OPTIMIZER = "optimizer_"
#: The index that torch writes over the parts, and its name until it is whole.
_INDEX = (".metadata", ".metadata.tmp")


def is_checkpoint(path: Path) -> bool:
    """Whether there is a file, or the folder of a sharded checkpoint."""
    return path.is_file() or (path / METADATA).is_file()


def is_in_parts(path: Path) -> bool:
    """Whether there is the folder of a sharded checkpoint, or what a kill has left of one."""
    return path.is_dir() and all(
        file.name == METADATA or file.name in _INDEX or file.suffix == ".distcp"
        for file in path.iterdir()
    )


def remove_parts(folder: Path) -> None:
    """Remove a sharded checkpoint, so that a kill on the way leaves none that could be read."""
    (folder / METADATA).unlink(missing_ok=True)
    shutil.rmtree(folder)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds, on the CPU, its weights whole.

    Args:
        path: a file, or the folder of a sharded checkpoint. Trust a folder before you read it:
            torch unpickles its index.

    Returns:
        What Lightning's checkpoints hold: `state_dict`, `optimizer_states` and more.
    """
    if path.is_file():
        return _load(path)
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.ckpt"
        dcp_to_torch_save(path, whole)
        # Pieces of an optimiser's state may be any values; torch has just unpickled them.
        parts: dict[str, Any] = torch.load(whole, map_location="cpu", weights_only=False)
    checkpoint = _load(path / METADATA)
    # Lightning's two sharded strategies have two names for the weights.
    checkpoint["state_dict"] = parts.get("state_dict", parts.get("model", {}))
    numbers = sorted(int(n.removeprefix(_OPTIMIZER)) for n in parts if n.startswith(_OPTIMIZER))
    checkpoint["optimizer_states"] = [_numbered(parts[f"{_OPTIMIZER}{n}"]) for n in numbers]
    return checkpoint


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state by position again; torch has made texts of the numbers."""
    moments = state.get("state", {})
    return {
        **state,
        "state": {int(n) if str(n).isdigit() else n: value for n, value in moments.items()},
    }
