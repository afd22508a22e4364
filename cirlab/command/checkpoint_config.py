"""The configuration a checkpoint was trained with, and whether it still holds.

Lightning lets a checkpoint's hyperparameters override the YAML without a word; here the YAML
is the truth and a contradiction is an error.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from cirlab.checkpoints import METADATA
from cirlab.command.references import MISSING, leaves, look_up
from cirlab.errors import UserError

#: Key of a checkpoint under which its configuration lies.
CONFIG = "config"
#: Differences that a refusal names beside the first.
NAMED = 3
#: Stands in a refusal for a section with keys of its own.
SECTION = "a section"
#: Sets several keys at once, `FOUR_BIT` the one that tells.
QLORA, FOUR_BIT = "experiments/overlays/qlora.yaml", ".four_bit"
#: How the archives begin that torch writes.
_ARCHIVE = b"PK"
#: Data arguments that change neither the training samples nor their order.
HARMLESS = ("eval_batch_size",)


def read_metadata(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, its weights left on disk.

    Args:
        path: a checkpoint file, or the folder of a sharded one.

    Raises:
        UserError: it does not exist or is no checkpoint of this repository.
    """
    file = path / METADATA if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"there is no checkpoint {path}; give the path of one as --ckpt_path (make: CKPT=)"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} {_what_it_is(file)}; choose another checkpoint") from error
    # A sharded checkpoint has its weights in other files.
    if not isinstance(content, dict) or ("state_dict" not in content and file == path):
        raise UserError(
            f"{path} holds no training state; give a .ckpt that a run of this repository wrote, "
            "and load other weights by the model's own arguments"
        )
    return content


def _what_it_is(file: Path) -> str:
    """What torch could not load, of which it says much more."""
    if zipfile.is_zipfile(file):
        return "holds more than weights and plain values, which is not loaded as it may run code"
    with file.open("rb") as opened:
        begin = opened.read(len(_ARCHIVE))
    if begin == _ARCHIVE:
        return "is cut off, as by a copy that did not finish"
    return "is no checkpoint" if begin else "is empty"


def check_config(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any], fit: bool) -> None:
    """Refuse a configuration that contradicts the checkpoint's.

    Args:
        path: of the checkpoint, for the message.
        saved: the checkpoint's configuration: model, data, seed_everything.
        now: the configuration of this run.
        fit: training goes on, so that optimiser, batch size and seed have to agree too.

    Raises:
        UserError: it names the keys that differ, with both values.
    """
    theirs, ours = saved["model"]["class_path"], now["model"]["class_path"]
    if theirs != ours:
        raise UserError(
            f"{path} is a checkpoint of {theirs}, but the configuration names {ours}; use the "
            "experiment that it was trained with"
        )
    free = _free_arguments(saved["model"], fit) & _free_arguments(now["model"], fit)
    if differences := _differences(_decisive(saved, fit, free), _decisive(now, fit, free)):
        raise UserError(_sentence(differences, f"the checkpoint {path}"))


def check_settings(source: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse settings of a method that contradict the checkpoint's.

    Args:
        source: the checkpoint, for the message.
        saved: its configuration.
        now: the settings of this run by dotted key within `model.init_args`, plain values and
            mappings of them.

    Raises:
        UserError: it names the keys that differ, with both values.
    """
    arguments = saved["model"].get("init_args") or {}
    theirs = {key: look_up(arguments, key) for key in now}
    known = [key for key in now if theirs[key] is not MISSING]
    old, new = (
        dict(leaves({f"model.init_args.{key}": values[key] for key in known}))
        for values in (theirs, now)
    )
    if differences := _differences(old, new):
        raise UserError(_sentence(differences, source))


def _sentence(differences: Mapping[str, tuple[str, str]], source: str) -> str:
    """What differs, and what to do about it."""
    # A whole section that one side lacks often follows from another key, and says less.
    (key, (old, new)), *others = sorted(
        differences.items(),
        key=lambda item: (not item[0].endswith(FOUR_BIT), SECTION in item[1], item[0]),
    )
    advice = f"set it to {old}" if old != SECTION else "set it as it was in training"
    also = ""
    if others:
        named = [f"{k} is {n}, not {o}" for k, (o, n) in others[:NAMED]]
        also = f" (likewise {', '.join(named)}{', ...' if len(others) > NAMED else ''})"
        advice = "set them as they were in training"
    if key.endswith(FOUR_BIT):
        what = "give again what set it" if old == SECTION else "leave out what sets it"
        advice = f'{what}, such as -c {QLORA} (make: ARGS="-c {QLORA}")'
    return (
        f"{key} is {new} in the configuration but {old} in {source}{also}; {advice}, or train anew"
    )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Both values by dotted key, as YAML spells them; a section that one side lacks counts once."""
    found = {}
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            place = _lacking(key, old, new)
            found[place] = (_spelt(place, old), _spelt(place, new))
    return found


def _lacking(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The outermost section around a key that is null on one side, or else the key."""
    parts = key.split(".")
    sections = (".".join(parts[:end]) for end in range(3, len(parts)))
    return next((name for name in sections if name in old or name in new), key)


def _spelt(key: str, values: Mapping[str, Any]) -> str:
    if any(name.startswith(f"{key}.") for name in values):
        return SECTION
    value = values.get(key)
    # YAML has null, true and false where Python has names of its own.
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _decisive(config: Mapping[str, Any], fit: bool, free: frozenset[str]) -> dict[str, Any]:
    """The values that have to agree, by dotted key."""
    found = {
        f"model.init_args.{key}": value
        for key, value in leaves(config["model"].get("init_args") or {})
        if not any(key == name or key.startswith(f"{name}.") for name in free)
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


def _free_arguments(model: Mapping[str, Any], fit: bool) -> frozenset[str]:
    """Arguments of a method that need not agree with the checkpoint's.

    They are those that say how it learned, where nothing more is learned, and those that only say
    what is refused.
    """
    module, _, name = model["class_path"].rpartition(".")
    method = getattr(import_module(module), name)
    learning: frozenset[str] = getattr(method, "learning_arguments", frozenset())
    limits: Callable[..., frozenset[str]] = getattr(method, "limits", lambda _: frozenset())
    return (frozenset() if fit else learning) | limits(model.get("init_args") or {})
