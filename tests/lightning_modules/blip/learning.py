"""A tiny BLIP as it is when training begins."""

from __future__ import annotations

from typing import Any

import torch

from cirlab.records import Pair
from lightning_modules import Blip
from lightning_modules.blip import Contrast

CONTRAST = Contrast(queue_size=8, momentum=0.5, alpha=0.4)


def blip(folder: str, **options: Any) -> Blip:
    """As it is when training begins."""
    torch.manual_seed(0)
    module = Blip(folder, **({"contrast": CONTRAST, "max_length": 16} | options))
    module.configure_model()
    module.add_teacher()
    return module


def batch_of(module: Blip, records: list[Pair]) -> Any:
    return module.train_collator()(records)


def gradients(module: Blip) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
