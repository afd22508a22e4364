"""The large-batch measurement compares like with like."""

from __future__ import annotations

import torch

from bench.large_batch import collated, difference, method, step


def test_both_methods_have_the_same_gradient_of_the_same_batch() -> None:
    chunked, plain = method(2), method(None)
    batch = collated(plain, 6)
    assert len(batch["query"]["groups"]) == 1
    assert len(collated(chunked, 6)["query"]["groups"]) == 3
    step(plain, batch)
    assert all(p.grad is not None and p.grad.any() for p in plain.parameters() if p.requires_grad)
    assert difference(chunked, plain, size=6) < 1e-4
    torch.testing.assert_close(difference(plain, plain, size=6), 0.0)
