from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from cirlab.random_state import random_state, set_random_state


def draw() -> tuple[float, float, float, list[float]]:
    values = random.random(), random.gauss(), float(np.random.normal())  # noqa: NPY002
    return *values, torch.rand(3).tolist()


def test_generators_continue_where_they_were(tmp_path: Path) -> None:
    draw()
    # Through a file, as a checkpoint takes it: without pickled classes.
    torch.save(random_state(), tmp_path / "state.pt")
    expected = [draw(), draw()]
    draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draw(), draw()] == expected
