"""Two processes learn what one with both batches does, and hold the same queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_modules import Blip
from lightning_modules.blip import Contrast
from lightning_modules.blip.losses import ReadPairs
from tests.distributed.processes import WORLD, run_in_processes
from tests.tiny_blip import pair, pairs, write_tiny_blip

BATCH = 3


def module_of(folder: str, **options: Any) -> Blip:
    torch.manual_seed(0)
    module = Blip(folder, max_length=16, contrast=Contrast(queue_size=10), **options)
    module.configure_model()
    module.add_teacher()
    return module


def records() -> list[Any]:
    """Of different lengths, one image twice, in both processes' batches."""
    found = pairs(BATCH * WORLD)
    found[1] = pair(9, "red", "is it a red circle on the left ?")
    found[BATCH + 1] = pair(9, "red")
    return found


def learn(folder: str, share: slice, **options: Any) -> dict[str, Any]:
    """Two steps' losses, the gradient of the second, and the queue."""
    module = module_of(folder, **options)
    batch = module.train_collator()(records()[share])
    module.losses(batch)
    terms = module.losses(batch)
    torch.stack(list(terms.values())).sum().backward()
    assert module.queue is not None
    return {
        "losses": {name: value.item() for name, value in terms.items()},
        "grads": {n: p.grad for n, p in module.named_parameters() if p.grad is not None},
        "queue": module.queue.state_dict(),
    }


def learn_share(rank: int, folder: str) -> dict[str, dict[str, Any]]:
    share = slice(rank * BATCH, (rank + 1) * BATCH)
    torch.manual_seed(rank)
    matching = module_of(folder, negative_all_rank=True)
    drawn = _read(matching, share).of_all_processes(None)
    return {
        "contrast": learn(folder, share, itm_weight=0.0),
        "pool": {"ids": drawn.ids, "hidden": drawn.patches.detach(), **drawn.tokens},
    }


def _read(module: Blip, share: slice) -> ReadPairs:
    return module._read_pairs(module.train_collator()(records()[share]))


def test_two_processes_are_one_with_both_batches(tmp_path: Path) -> None:
    folder = str(write_tiny_blip(tmp_path / "blip"))
    first, second = run_in_processes(learn_share, tmp_path, folder)
    whole = learn(folder, slice(None), itm_weight=0.0)
    parts = first["contrast"], second["contrast"]
    mean = sum(part["losses"]["itc"] for part in parts) / WORLD
    torch.testing.assert_close(torch.tensor(mean), torch.tensor(whole["losses"]["itc"]))
    assert whole["grads"].keys() == parts[0]["grads"].keys()
    for name, expected in whole["grads"].items():
        averaged = torch.stack([part["grads"][name] for part in parts]).mean(dim=0)
        torch.testing.assert_close(averaged, expected, rtol=1e-3, atol=1e-6, msg=name)
    for part in parts:
        for name, expected in whole["queue"].items():
            torch.testing.assert_close(part["queue"][name], expected)
    # Negatives of all processes: the same on both, in rank order, texts padded to one length.
    alone = _read(module_of(folder), slice(None))
    for pool in (first["pool"], second["pool"]):
        assert torch.equal(pool["ids"], alone.ids)
        torch.testing.assert_close(pool["hidden"], alone.patches)
        assert torch.equal(pool["input_ids"], alone.tokens["input_ids"])
        assert torch.equal(pool["attention_mask"], alone.tokens["attention_mask"])


def train(rank: int, folder: str) -> dict[str, Any]:
    """Whole losses, negatives of both processes; each waits for the other's collectives."""
    share = slice(rank * BATCH, (rank + 1) * BATCH)
    torch.manual_seed(rank)
    module = module_of(folder, negative_all_rank=True)
    batch = module.train_collator()(records()[share])
    terms = module.losses(batch)
    torch.stack(list(terms.values())).sum().backward()
    return {name: value.item() for name, value in terms.items()}


def test_matching_of_both_batches_has_a_gradient_on_each(tmp_path: Path) -> None:
    folder = str(write_tiny_blip(tmp_path / "blip"))
    for terms in run_in_processes(train, tmp_path, folder):
        assert set(terms) == {"itc", "itm"}
        assert all(torch.tensor(value).isfinite() for value in terms.values())
