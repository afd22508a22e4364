"""What a configuration says of BLIP's contrast."""

from __future__ import annotations

import pytest

from cirlab.errors import UserError
from lightning_modules.blip import Contrast


def test_shares_outside_of_0_to_1_are_refused() -> None:
    with pytest.raises(UserError, match=r"contrast\.alpha is 1\.5; choose a value from 0 to 1"):
        Contrast(alpha=1.5)


def test_the_share_of_soft_targets_rises_over_the_warm_up() -> None:
    contrast = Contrast(alpha=0.4, alpha_warmup=0.5)
    shares = [contrast.alpha_at(step, steps=8) for step in (0, 1, 3, 4, 8)]
    assert shares == pytest.approx([0.0, 0.1, 0.3, 0.4, 0.4])
    assert Contrast(alpha=0.4, alpha_warmup=0.0).alpha_at(0, steps=8) == 0.4
