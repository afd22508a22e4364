"""Whether the machine has the devices that a configuration asks for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import torch

from cirlab.errors import UserError

GPU_NAMES = ("cuda", "gpu")


def check_devices(accelerator: str, devices: int | str | list[int]) -> None:
    """Refuse devices that this machine lacks.

    Args:
        accelerator: of the trainer; "auto" takes CUDA devices if there are any.
        devices: their number, "auto" or -1 for all, or a list of their positions.

    Raises:
        UserError: it names what was asked for and what there is.
    """
    if not _countable(devices):
        raise UserError(
            f"trainer.devices is {devices!r}; give their number, auto, or a list of positions"
        )
    there = torch.cuda.device_count()
    if not there and accelerator in ("auto", "gpu") and torch.backends.mps.is_available():
        return
    if accelerator in GPU_NAMES and not there:
        raise UserError(
            f"trainer.accelerator is {accelerator}, but torch finds no such device on this "
            "machine; use --trainer.accelerator cpu or auto"
        )
    if accelerator not in ("auto", "cpu", *GPU_NAMES):
        return
    on_cpu = runs_on_cpu(accelerator)
    limit = (os.cpu_count() or 1) if on_cpu else there
    wanted = _highest(devices)
    if wanted is not None and not 1 <= wanted <= limit:
        kind = "CPU cores, of which each process needs one" if on_cpu else "CUDA devices"
        raise UserError(
            f"trainer.devices is {devices}, but this machine has {limit} {kind}; "
            f"use --trainer.devices 1 to {limit}"
        )


def runs_on_cpu(accelerator: str) -> bool:
    """Whether the trainer will take the CPU, "auto" being the GPU where there is one."""
    if accelerator == "auto":
        return not torch.cuda.device_count() and not torch.backends.mps.is_available()
    return accelerator == "cpu"


def number_of_devices(accelerator: str, devices: int | str | list[int]) -> int | None:
    """How many processes a machine is to run; None where that cannot be told.

    Args:
        accelerator: of the trainer.
        devices: as `check_devices` takes them.
    """
    positions = _positions(devices)
    if positions is not None:
        return len(positions)
    text = str(devices).strip()
    if text not in ("auto", "-1"):
        return int(text)
    if runs_on_cpu(accelerator):
        return 1 if text == "auto" else None
    return torch.cuda.device_count() or None


def check_name(key: str, name: Any, known: Iterable[str]) -> None:
    """Refuse a name that the trainer would not know.

    Args:
        key: of the trainer.
        name: as configured; an object instead of a name is taken as it is.
        known: the names there are, beside "auto".

    Raises:
        UserError: it names the nearest one, or all.
    """
    if not isinstance(name, str):
        return
    names = sorted({"auto", *known})
    if name not in (*names, *GPU_NAMES):
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"
        raise UserError(f"trainer.{key} is {name!r}, which does not exist; {hint}")


def _countable(devices: int | str | list[int]) -> bool:
    if not isinstance(devices, str):
        return True
    return devices.strip() == "auto" or bool(
        re.fullmatch(r"-?\d+|(\d+\s*,\s*)+\d*", devices.strip())
    )


def _highest(devices: int | str | list[int]) -> int | None:
    """How many devices there have to be at least; None: whatever there is."""
    positions = _positions(devices)
    if positions is not None:
        return max(positions, default=-1) + 1
    text = str(devices).strip()
    return None if text in ("auto", "-1") else int(text)


def _positions(devices: int | str | list[int]) -> list[int] | None:
    """Positions of single devices; None where a number of them is given."""
    if isinstance(devices, str):
        parts = [part.strip() for part in devices.split(",")]
        return [int(part) for part in parts if part.isdigit()] if len(parts) > 1 else None
    return devices if isinstance(devices, list) else None
