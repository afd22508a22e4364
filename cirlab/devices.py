"""Whether the machine has the devices that a configuration asks for."""

from __future__ import annotations

import os

import torch

from cirlab.errors import UserError

GPU_NAMES = ("cuda", "gpu")


def check_devices(accelerator: str, devices: int | str | list[int]) -> None:
    """Refuse devices that this machine lacks.

    Args:
        accelerator: of the trainer; "auto" takes CUDA devices if there are any.
        devices: their number, "auto" or -1 for all, or a list of their positions.

    Raises:
        UserError: it names the number asked for and the number there is.
    """
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
    on_cpu = accelerator == "cpu" or not there
    limit = (os.cpu_count() or 1) if on_cpu else there
    wanted = _highest(devices)
    if wanted is not None and not 1 <= wanted <= limit:
        kind = "CPU cores, of which each process needs one" if on_cpu else "CUDA devices"
        raise UserError(
            f"trainer.devices is {devices}, but this machine has {limit} {kind}; "
            f"use --trainer.devices 1 to {limit}"
        )


def _highest(devices: int | str | list[int]) -> int | None:
    """How many devices there have to be at least; None: whatever there is."""
    if isinstance(devices, str):
        text = devices.strip()
        if "," in text:
            devices = [int(part) for part in text.split(",") if part.strip().isdigit()]
        elif text.lstrip("-").isdigit():
            devices = int(text)
        else:
            return None
    if isinstance(devices, list):
        return max(devices, default=-1) + 1
    return None if devices == -1 else devices
