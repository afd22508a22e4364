from __future__ import annotations

import pytest
import torch

from cirlab.command import cpu
from cirlab.command.cpu import affordable_precision


@pytest.mark.parametrize(
    ("unit", "asked", "taken"),
    [
        ("amx_bf16", "bf16-mixed", "bf16-mixed"),
        ("avx512_bf16", "bf16-mixed", "32-true"),
        ("bf16", "bf16-mixed", "bf16-mixed"),
        ("avx2", "bf16-mixed", "32-true"),
        ("avx2", "bf16-true", "bf16-true"),
        ("avx2", "32-true", "32-true"),
    ],
)
def test_mixed_precision_needs_units_for_it(
    unit: str, asked: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "vendor", lambda: "GenuineIntel")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: True, "amx_tile": False})
    assert affordable_precision(asked) == taken


@pytest.mark.parametrize(
    ("vendor", "taken"), [("AuthenticAMD", "bf16-mixed"), ("GenuineIntel", "32-true")]
)
def test_instructions_without_units_pay_on_some_processors(
    vendor: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "vendor", lambda: vendor)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert affordable_precision("bf16-mixed") == taken
