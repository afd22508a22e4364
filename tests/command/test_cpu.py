from __future__ import annotations

import pytest
import torch

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
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: True, "amx_tile": False})
    assert affordable_precision(asked) == taken
