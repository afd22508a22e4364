"""Two processes learn what one with both batches does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cirlab.losses import ContrastiveLoss
from cirlab.records import Pair
from lightning_modules import ChatIR
from tests.distributed.processes import WORLD, run_in_processes
from tests.tiny_blip import pair, pairs, write_tiny_blip

BATCH = 3


def dialogues() -> list[Pair]:
    """Of different lengths, one image twice, in both processes' batches."""
    found = pairs(BATCH * WORLD)
    found[1] = pair(9, "red", "is it a red circle on the left ?")
    found[BATCH + 1] = pair(9, "red")
    found[0] = Pair(found[0].image, found[0].captions, also_correct=("5",))
    return found


def learn(folder: str, share: slice) -> list[tuple[float, dict[str, Tensor]]]:
    """Loss and gradient, by either loss."""
    found = []
    losses: tuple[Any, ...] = (None, ContrastiveLoss())
    for loss in losses:
        module = ChatIR(f"blip:{folder}", loss=loss, max_length=16)
        module.configure_model()
        term = module.losses(module.train_collator()(dialogues()[share]))["dialogue"]
        term.backward()
        grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        # DDP would wait for the gradient of any other.
        assert grads.keys() == {n for n, p in module.named_parameters() if p.requires_grad}
        found.append((term.item(), grads))
    return found


def learn_share(rank: int, folder: str) -> list[tuple[float, dict[str, Tensor]]]:
    return learn(folder, slice(rank * BATCH, (rank + 1) * BATCH))


def test_two_processes_are_one_with_both_batches(tmp_path: Path) -> None:
    folder = str(write_tiny_blip(tmp_path / "blip"))
    shares = run_in_processes(learn_share, tmp_path, folder)
    for (loss, whole), *parts in zip(learn(folder, slice(None)), *shares, strict=True):
        mean = sum(part[0] for part in parts) / WORLD
        torch.testing.assert_close(torch.tensor(mean), torch.tensor(loss))
        for name, expected in whole.items():
            averaged = torch.stack([grads[name] for _, grads in parts]).mean(dim=0)
            torch.testing.assert_close(averaged, expected, rtol=1e-3, atol=1e-6)
