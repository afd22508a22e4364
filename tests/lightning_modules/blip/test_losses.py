"""BLIP's losses: what they compare, what they reach, and what of them all processes share."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.lightning_modules.blip.learning import batch_of, blip
from tests.tiny_blip import pair, pairs, write_tiny_blip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_blip(tmp_path_factory.mktemp("blip"), decoder=True))


def test_weights_scale_their_losses(folder: str) -> None:
    records = pairs(2)
    one = blip(folder, lm_weight=1.0)
    other = blip(folder, lm_weight=0.5, itm_weight=2.0)
    for module in (one, other):
        module.eval()
    first, second = (module.losses(batch_of(module, records)) for module in (one, other))
    torch.testing.assert_close(second["itc"], first["itc"])
    torch.testing.assert_close(second["itm"], 2 * first["itm"])
    torch.testing.assert_close(second["lm"], first["lm"] / 2)


def test_matching_reads_each_pair_and_both_kinds_of_wrong_ones(folder: str) -> None:
    """With two images each has only one other to be drawn."""
    module = blip(folder)
    records = [pair(0, "red"), pair(1, "blue", "is it a blue square on the left ?")]
    batch = batch_of(module, records)
    found = module.losses(batch)["itm"]
    encoder = module.encoder
    assert encoder is not None
    hidden, tokens = encoder.hidden_images(batch["image"]["pixels"]), batch["text"]
    swapped = {key: value.flip(0) for key, value in tokens.items()}
    logits = torch.cat(
        [
            encoder.match(tokens, hidden),
            encoder.match(tokens, hidden.flip(0)),
            encoder.match(swapped, hidden),
        ]
    )
    labels = torch.tensor([1, 1, 0, 0, 0, 0])
    torch.testing.assert_close(found, cross_entropy(logits, labels))


def test_an_image_is_no_wrong_one_for_its_other_caption(folder: str) -> None:
    module = blip(folder)
    records = [pair(0, "red"), pair(0, "red", "a square")]
    batch = batch_of(module, records)
    encoder = module.encoder
    assert encoder is not None
    logits = encoder.match(batch["text"], encoder.hidden_images(batch["image"]["pixels"]))
    expected = cross_entropy(logits, torch.tensor([1, 1]))
    torch.testing.assert_close(module.losses(batch)["itm"], expected)


def test_the_queue_and_the_slow_encoders_follow(folder: str) -> None:
    module = blip(folder, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    assert module.queue is not None and module.teacher is not None
    batch = batch_of(module, pairs(3))
    for size in (3, 6, 8):
        module.losses(batch)
        assert len(module.queue.ids) == size
    assert set(module.queue.ids.tolist()) == set(batch["ids"].tolist())
