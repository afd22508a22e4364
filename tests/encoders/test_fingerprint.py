from __future__ import annotations

import torch

from cirlab.encoders.fingerprint import fingerprint, full_fingerprint


def test_values_names_and_shapes_tell_weights_apart() -> None:
    weights = {"a": torch.arange(1000.0), "b": torch.ones(2, 3)}
    same = fingerprint(weights.items())
    assert fingerprint(reversed([*weights.items()])) == same
    assert fingerprint((weights | {"b": torch.ones(3, 2)}).items()) != same
    assert fingerprint((weights | {"b": torch.zeros(2, 3)}).items()) != same
    assert fingerprint({"a": weights["a"], "c": weights["b"]}.items()) != same


def test_a_full_fingerprint_sees_every_value_and_type() -> None:
    weights = {"a": torch.arange(1000.0), "b": torch.ones(2, 3).t(), "c": torch.tensor(1.0)}
    same = full_fingerprint(weights.items())
    assert full_fingerprint(reversed([*weights.items()])) == same
    changed = weights["a"].clone()
    changed[999] += 1e-3
    assert fingerprint((weights | {"a": changed}).items()) == fingerprint(weights.items())
    assert full_fingerprint((weights | {"a": changed}).items()) != same
    fewer_bits = weights | {"a": weights["a"].bfloat16()}
    assert full_fingerprint(fewer_bits.items()) != same
