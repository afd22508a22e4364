"""The configuration a checkpoint was trained with, and whether it still holds.

Lightning lets a checkpoint's hyperparameters override the YAML without a word; here the YAML
is the truth and a contradiction is an error.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from cirlab.command.references import leaves
from cirlab.errors import UserError

#: Key of a checkpoint under which its configuration lies.
CONFIG = "config"
#: Data arguments that change neither the training samples nor their order.
HARMLESS = ("eval_batch_size",)


def read_metadata(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, its weights left on disk.

    Args:
        path: a checkpoint file, or the folder of a sharded one.

    Raises:
        UserError: it does not exist or is no checkpoint of this repository.
    """
    file = path / "meta.pt" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no checkpoint {path}; give the path of a .ckpt as ckpt_path")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0]}); it is damaged "
            "or was not written by this repository"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(
            f"{path} holds no training state; give a .ckpt that a run of this repository wrote, "
            "and load other weights by the model's own arguments"
        )
    return content


def check_config(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any], fit: bool) -> None:
    """Refuse a configuration that contradicts the checkpoint's.

    Args:
        path: of the checkpoint, for the message.
        saved: the checkpoint's configuration: model, data, seed_everything.
        now: the configuration of this run.
        fit: training goes on, so that optimiser, batch size and seed have to agree too.

    Raises:
        UserError: it names the first key that differs, with both values.
    """
    theirs, ours = saved["model"]["class_path"], now["model"]["class_path"]
    if theirs != ours:
        raise UserError(
            f"{path} is a checkpoint of {theirs}, but the configuration names {ours}; use the "
            "experiment that it was trained with"
        )
    for key, (old, new) in sorted(_differences(saved, now, fit).items()):
        raise UserError(
            f"{key} is {new!r} in the configuration but {old!r} in the checkpoint {path}; set it "
            f"to {old!r}, or train anew"
        )


def _differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], fit: bool
) -> dict[str, tuple[Any, Any]]:
    old, new = _decisive(saved, fit), _decisive(now, fit)
    both = old.keys() | new.keys()
    pairs = {key: (old.get(key), new.get(key)) for key in both}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def _decisive(config: Mapping[str, Any], fit: bool) -> dict[str, Any]:
    """The values that have to agree, by dotted key."""
    model = config["model"]
    learning = () if fit else tuple(_learning_arguments(model["class_path"]))
    found = {
        f"model.init_args.{key}": value
        for key, value in leaves(model.get("init_args") or {})
        if not any(key == name or key.startswith(f"{name}.") for name in learning)
    }
    if not fit:
        return found
    found["seed_everything"] = config.get("seed_everything")
    data = config.get("data") or {}
    found["data.class_path"] = data.get("class_path")
    for key, value in leaves(data.get("init_args") or {}):
        # Folders may have moved and benchmarks may be added; numbers decide the order of samples.
        if isinstance(value, int | float) and not key.startswith(("benchmarks", *HARMLESS)):
            found[f"data.init_args.{key}"] = value
    return found


def _learning_arguments(class_path: str) -> frozenset[str]:
    """Arguments of a method that say how it learned, which an evaluation need not repeat."""
    module, _, name = class_path.rpartition(".")
    return getattr(getattr(import_module(module), name), "learning_arguments", frozenset())
