from __future__ import annotations

import torch

from cirlab.encoders.fingerprint import fingerprint


def test_values_names_and_shapes_tell_weights_apart() -> None:
    weights = {"a": torch.arange(1000.0), "b": torch.ones(2, 3)}
    same = fingerprint(weights.items())
    assert fingerprint(reversed([*weights.items()])) == same
    assert fingerprint((weights | {"b": torch.ones(3, 2)}).items()) != same
    assert fingerprint((weights | {"b": torch.zeros(2, 3)}).items()) != same
    assert fingerprint({"a": weights["a"], "c": weights["b"]}.items()) != same
