"""Parameters and bytes of a model's parts, against numbers worked out by hand."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer, RMSprop

from cirlab.encoders.adapters import TowerLora, add_lora_to_tower
from cirlab.reporting.model_sizes import (
    model_sizes,
    parameter_count,
    show_sizes,
    sizes_line,
    state_bytes,
    total,
)


def adapted() -> nn.Module:
    """A tower of 3 x 5 weights with adapters of rank 2, beside a head of 5 and 1."""
    tower = nn.Sequential(nn.Linear(3, 5, bias=False)).to(torch.bfloat16)
    add_lora_to_tower(tower, TowerLora(rank=2, targets=["0"]))
    head = nn.Sequential(nn.Linear(5, 1), nn.BatchNorm1d(1, affine=False))
    return nn.ModuleDict({"tower": tower, "head": head, "empty": nn.GELU()})


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def test_parts_by_hand() -> None:
    model = adapted()
    base, adapters, head = model_sizes(model, [AdamW(trained(model))])
    assert (base.name, adapters.name, head.name) == ("tower, base", "tower, adapters", "head")
    assert (base.parameters, base.trainable, base.dtypes) == (15, 0, ("bfloat16",))
    assert (base.weights, base.gradients, base.optimizer) == (30, 0, 0)
    # (3 + 5) * 2 in two bytes; two moments and a counter of 4 bytes for each of two matrices.
    assert (adapters.parameters, adapters.trainable, adapters.dtypes) == (16, 16, ("bfloat16",))
    assert (adapters.weights, adapters.gradients, adapters.optimizer) == (32, 32, 2 * 32 + 8)
    # Six parameters; running mean, running variance and an int64 counter are no parameters.
    assert (head.parameters, head.trainable) == (6, 6)
    assert (head.weights, head.gradients, head.optimizer) == (24 + 16, 24, 48 + 8)
    whole = total([base, adapters, head])
    assert (whole.parameters, whole.trainable) == (37, 22)
    assert whole.bytes == 30 + 32 + 32 + 72 + 40 + 24 + 56
    assert whole.dtypes == ("bfloat16", "float32")


def test_an_evaluation_has_weights_alone() -> None:
    assert total(model_sizes(adapted())).bytes == 30 + 32 + 40


@pytest.mark.parametrize(
    "make",
    [
        AdamW,
        lambda parameters: AdamW(parameters, amsgrad=True),
        SGD,
        lambda parameters: SGD(parameters, momentum=0.9),
        RMSprop,
        Adafactor,
    ],
)
def test_optimisers_keep_what_was_foretold(make: Callable[..., Optimizer]) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2, dtype=torch.bfloat16))
    groups = [{"params": [*model[0].parameters()]}, {"params": [*model[1].parameters()], "lr": 0.5}]
    optimizer = make(groups)
    # As a schedule does it, which replaces the optimiser's step.
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    before = [p.clone() for p in model.parameters()]
    foretold = state_bytes(optimizer)
    assert not optimizer.state
    assert all(map(torch.equal, before, model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert foretold == {
        id(p): sum(
            v.numel() * v.element_size() for v in optimizer.state[p].values() if v is not None
        )
        for p in model.parameters()
    }


def test_an_optimiser_that_cannot_tell_is_not_guessed() -> None:
    class Own(SGD):
        def step(self, closure: Any = None) -> None:
            raise RuntimeError("needs a GPU")

    model = nn.ModuleDict(
        {"frozen": nn.Linear(2, 2).requires_grad_(False), "head": nn.Linear(2, 2)}
    )
    parts = model_sizes(model, [Own(trained(model))])
    assert [part.optimizer for part in parts] == [0, None]
    assert total(parts).optimizer is None and total(parts).bytes == 24 + 24 + 24
    text = shown(parts)
    assert " - " in text and "-: not known of this optimiser" in text


def test_four_bit_weights_with_their_constants() -> None:
    layer = bnb.nn.Linear4bit(128, 64, bias=False, compress_statistics=True, quant_type="nf4")
    layer.load_state_dict({"weight": torch.randn(64, 128)})
    model = nn.ModuleDict({"llm": layer.to("cpu")})
    (part,) = model_sizes(model)
    assert part.parameters == parameter_count(layer.weight) == 128 * 64
    assert part.dtypes == ("nf4 (4-bit)",)
    # Half a byte each; a byte for each block of 64 and float32 for each 256 of those; the
    # float32 tables of 16 and 256 values; their mean.
    assert part.weights == 4096 + 128 + 4 + 16 * 4 + 256 * 4 + 4


def test_shared_weights_count_once() -> None:
    first = nn.Linear(4, 4, bias=False)
    second = nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    assert total(model_sizes(nn.ModuleDict({"a": first, "b": second}))).weights == 64


def test_whole_shapes_stand_for_parameters_that_are_flattened() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False)})
    (part,) = model_sizes(model, shapes={"a.weight": torch.Size((8, 4))})
    assert (part.parameters, part.weights) == (32, 64)


def shown(parts: Any, processes: int = 1) -> str:
    stream = io.StringIO()
    show_sizes(Console(file=stream, width=80), "CoLLM", parts, processes)
    return stream.getvalue()


def test_the_table() -> None:
    text = shown(model_sizes(adapted(), [SGD(trained(adapted()))]))
    assert "tower, adapters" in text and "all" in text and "processes" not in text
    assert "Activations come on top" in text
    assert "for one of 8 processes that divide them" in shown(model_sizes(adapted()), 8)


def test_the_line() -> None:
    line = sizes_line("CoLLM", model_sizes(nn.ModuleDict({"a": nn.Linear(1024, 1024)})))
    assert line == "CoLLM: 1.05 M parameters, 4.0 MiB (float32)"
