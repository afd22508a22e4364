"""Chunks give the gradient of the whole batch, and keep its vectors alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from cirlab.chunking import check_chunk_size, each_chunk, in_chunks, split
from cirlab.errors import UserError


def contrastive_gradient(net: nn.Module, x: torch.Tensor, size: int | None) -> torch.Tensor:
    """Of a loss in which every row meets every other."""
    net.zero_grad()
    rows = normalize(in_chunks(lambda chunk: net(chunk["x"]), split({"x": x}, size)), dim=-1)
    torch.logsumexp(rows @ rows.T / 0.07, dim=1).mean().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 4))


@pytest.mark.parametrize("size", [1, 3, 4, 10, 11])
def test_gradient_is_that_of_the_whole_batch(size: int) -> None:
    net, x = network(), torch.randn(10, 5)
    whole = contrastive_gradient(net, x, None)
    error = (contrastive_gradient(net, x, size) - whole).norm() / whole.norm()
    assert error < 1e-5


def test_dropout_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(dropout=0.5), torch.randn(10, 5)
    torch.manual_seed(1)
    chunked = contrastive_gradient(net, x, 3)
    # The same chunks, everything kept.
    monkeypatch.setattr("cirlab.chunking.checkpoint", lambda encode, chunk, **_: encode(chunk))
    torch.manual_seed(1)
    torch.testing.assert_close(contrastive_gradient(net, x, 3), chunked, rtol=1e-5, atol=1e-7)
    torch.manual_seed(2)
    assert not torch.allclose(contrastive_gradient(net, x, 3), chunked, rtol=0.1)


def test_gradient_reaches_what_is_cut() -> None:
    """Chunks may hold what other weights have computed (visual tokens)."""
    x = torch.randn(6, 5, requires_grad=True)
    in_chunks(lambda chunk: chunk["a"]["x"] ** 2, split({"a": {"x": x * 3}}, 4)).sum().backward()
    torch.testing.assert_close(x.grad, 18 * x.detach())


def kept_by(size: int | None) -> set[int]:
    """Numbers of elements of the tensors that autograd keeps for the backward pass."""
    kept: set[int] = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.add(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        in_chunks(network(), split(torch.randn(1000, 5), size))
    return kept


def test_only_vectors_are_kept() -> None:
    assert 1000 * 32 in kept_by(None)
    assert not any(count % 32 == 0 and count >= 32 * 100 for count in kept_by(100))


def test_nothing_runs_twice_without_need() -> None:
    calls: list[int] = []
    weight = torch.ones(5, requires_grad=True)

    def encode(chunk: torch.Tensor) -> torch.Tensor:
        calls.append(len(chunk))
        return torch.sigmoid(chunk * weight)

    x = torch.randn(5, 5)
    in_chunks(encode, split(x, 5)).sum().backward()
    assert calls == [5]
    with torch.no_grad():
        assert torch.equal(in_chunks(encode, split(x, 2)), torch.sigmoid(x))
    assert calls == [5, 2, 2, 1]
    in_chunks(encode, split(x, 3)).sum().backward()
    assert sorted(calls[4:]) == [2, 2, 3, 3]


def test_chunks_may_give_several_things() -> None:
    x = torch.arange(10.0)
    parts = each_chunk(lambda chunk: (chunk.sum(), len(chunk)), split(x, 4))
    assert [(float(total), count) for total, count in parts] == [(6, 4), (22, 4), (17, 2)]


def test_split() -> None:
    inputs = {"ids": torch.arange(5), "image": {"pixels": torch.arange(10).reshape(5, 2)}}
    first, second, third = split(inputs, 2)
    assert first["ids"].tolist() == [0, 1] and third["ids"].tolist() == [4]
    assert second["image"]["pixels"].tolist() == [[4, 5], [6, 7]]
    assert split(inputs, None) == [inputs]


def test_rows_that_do_not_belong_together_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        split({"a": torch.zeros(3), "b": torch.zeros(2)}, 2)


@pytest.mark.parametrize("size", [0, -1])
def test_size_must_be_one_or_more(size: int) -> None:
    with pytest.raises(UserError, match=f"chunk_size is {size}"):
        check_chunk_size(size)


def test_statistics_over_the_batch_are_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(UserError, match=r"layer 1 \(BatchNorm1d\)"):
        check_chunk_size(4, net)
    check_chunk_size(None, net)
    check_chunk_size(4, net.eval())
