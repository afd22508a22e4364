from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from cirlab.errors import UserError
from cirlab.momentum import PairQueue, Vectors, momentum_contrast, momentum_update, soft_targets

DIM = 5
TEMPERATURE = torch.tensor([0.2])


def draw(count: int, seed: int) -> Vectors:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(2, count, DIM, generator=generator)
    return Vectors(*normalize(found, dim=-1))


def test_slow_weights_follow_by_name() -> None:
    fast = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    slow = copy.deepcopy(nn.ModuleDict({"b": fast["b"]})).requires_grad_(False)
    before = slow.get_parameter("b.weight").clone()
    with torch.no_grad():
        fast.get_parameter("b.weight").add_(1.0)
    for _ in range(2):
        momentum_update(slow, fast, momentum=0.75)
    torch.testing.assert_close(slow.get_parameter("b.weight"), before + 0.25 + 0.25 * 0.75)
    assert not slow.get_parameter("b.weight").requires_grad


def test_the_queue_holds_the_last_rows_whatever_the_batches_are() -> None:
    queue = PairQueue(size=7, dim=DIM)
    assert queue.ids.tolist() == [] and queue.vectors.images.shape == (0, DIM)
    pushed = draw(20, seed=0)
    sizes, first = [3, 2, 4, 1, 10], 0
    for size in sizes:
        rows = slice(first, first + size)
        first += size
        batch = Vectors(pushed.images[rows], pushed.texts[rows])
        queue.push(batch, torch.arange(20)[rows])
        ids = queue.ids
        assert sorted(ids.tolist()) == list(range(max(0, first - 7), first))
        torch.testing.assert_close(queue.vectors.images, pushed.images[ids])
        torch.testing.assert_close(queue.vectors.texts, pushed.texts[ids])
    assert set(queue.state_dict()) == {"all_images", "all_texts", "all_ids", "pushed"}


def test_a_queue_may_have_no_rows() -> None:
    queue = PairQueue(size=0, dim=DIM)
    queue.push(draw(3, seed=0), torch.arange(3))
    assert queue.ids.tolist() == []
    with pytest.raises(UserError, match="queue_size is -1; set it to a number of rows, or to 0"):
        PairQueue(size=-1, dim=DIM)


def test_soft_targets_lie_between_ids_and_similarities() -> None:
    similarities = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    positive = torch.tensor([[True, False, True], [False, True, False]])
    hard = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(soft_targets(similarities, positive, alpha=0.0), hard)
    torch.testing.assert_close(
        soft_targets(similarities, positive, alpha=1.0), similarities.softmax(dim=1)
    )
    half = soft_targets(similarities, positive, alpha=0.5)
    torch.testing.assert_close(half, (hard + similarities.softmax(dim=1)) / 2)


def test_without_queue_and_soft_targets_it_is_clips_loss_against_the_slow_ones() -> None:
    fast, slow, ids = draw(6, seed=1), draw(6, seed=2), torch.arange(6)
    queue = PairQueue(size=0, dim=DIM)
    loss, everyone, every_id = momentum_contrast(
        fast, slow, ids, queue, temperature=TEMPERATURE, alpha=0.0
    )
    one = cross_entropy(fast.images @ slow.texts.T / TEMPERATURE, ids)
    other = cross_entropy(fast.texts @ slow.images.T / TEMPERATURE, ids)
    torch.testing.assert_close(loss, (one + other) / 2)
    assert torch.equal(everyone.images, slow.images) and torch.equal(every_id, ids)


def test_equal_ids_are_positives_in_the_batch_and_in_the_queue() -> None:
    """A hand-made case: all targets of a row are known."""
    fast, slow, older = draw(3, seed=3), draw(3, seed=4), draw(2, seed=5)
    queue = PairQueue(size=4, dim=DIM)
    queue.push(older, torch.tensor([7, 9]))
    ids = torch.tensor([7, 8, 7])
    loss, _, _ = momentum_contrast(fast, slow, ids, queue, temperature=TEMPERATURE, alpha=0.0)
    positive = {0: [0, 2, 3], 1: [1], 2: [0, 2, 3]}
    expected = 0.0
    for own, pool in (
        (fast.images, torch.cat([slow.texts, older.texts])),
        (fast.texts, torch.cat([slow.images, older.images])),
    ):
        likely = (own @ pool.T / TEMPERATURE).log_softmax(dim=1)
        rows = [-likely[row, columns].mean() for row, columns in positive.items()]
        expected += float(torch.stack(rows).mean()) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_soft_targets_come_from_the_slow_side_alone() -> None:
    fast, slow, ids = draw(4, seed=6), draw(4, seed=7), torch.arange(4)
    queue = PairQueue(size=0, dim=DIM)
    images = fast.images.clone().requires_grad_()
    texts = fast.texts.clone().requires_grad_()
    temperature = TEMPERATURE.clone().requires_grad_()
    slow = Vectors(*(side.clone().requires_grad_() for side in slow))
    loss, _, _ = momentum_contrast(
        Vectors(images, texts), slow, ids, queue, temperature=temperature, alpha=1.0
    )
    loss.backward()
    assert slow.images.grad is None and slow.texts.grad is None
    for name, value in (("images", images), ("texts", texts), ("temperature", temperature)):
        assert value.grad is not None and value.grad.abs().max() > 0, name
    scores = fast.images @ slow.texts.detach().T / TEMPERATURE
    targets = (slow.images.detach() @ slow.texts.detach().T / TEMPERATURE).softmax(dim=1)
    gradient = (scores.softmax(dim=1) - targets) @ slow.texts.detach() / TEMPERATURE / 4 / 2
    torch.testing.assert_close(images.grad, gradient, rtol=1e-4, atol=1e-6)
