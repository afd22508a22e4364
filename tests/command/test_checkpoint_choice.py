from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cirlab.command.checkpoint_choice import (
    best_checkpoint,
    choose_checkpoint,
    experiments_around,
    method_of,
)
from cirlab.errors import UserError


def checkpoint(root: Path, run: str, method: str | None = "rooms.Looking") -> Path:
    path = root / run / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    config = {} if method is None else {"config": {"model": {"class_path": method}}}
    torch.save({"state_dict": {}, **config}, path)
    return path


def test_the_best_of_the_newest_run_that_has_one(tmp_path: Path) -> None:
    assert best_checkpoint("x", tmp_path) is None
    checkpoint(tmp_path, "x/version_2")
    newest = checkpoint(tmp_path, "x/version_10")
    (tmp_path / "x" / "version_11").mkdir()
    assert best_checkpoint("x", tmp_path) == newest


def test_an_arms_own_checkpoint_goes_before_its_experiments(tmp_path: Path) -> None:
    outer = checkpoint(tmp_path, "x/version_0")
    assert choose_checkpoint("x/arm", "rooms.Looking", tmp_path) == outer
    assert choose_checkpoint("x/deep/arm", "rooms.Looking", tmp_path) == outer
    inner = checkpoint(tmp_path, "x/deep/version_0")
    assert choose_checkpoint("x/deep/arm", "rooms.Looking", tmp_path) == inner
    own = checkpoint(tmp_path, "x/arm/version_0")
    assert choose_checkpoint("x/arm", "rooms.Looking", tmp_path) == own
    assert choose_checkpoint("arm", "rooms.Looking", tmp_path) is None


@pytest.mark.parametrize("method", ["rooms.CLIP", None])
def test_weights_of_another_or_an_unknown_method_are_not_taken(
    tmp_path: Path, method: str | None
) -> None:
    made = checkpoint(tmp_path, "x/version_0", method)
    assert method_of(made) == method
    assert choose_checkpoint("x/arm", "rooms.Looking", tmp_path) is None
    # Its own experiment is told by check_config that they do not fit.
    assert choose_checkpoint("x", "rooms.Looking", tmp_path) == made


def test_a_broken_checkpoint_around_an_arm_is_told(tmp_path: Path) -> None:
    checkpoint(tmp_path, "x/version_0").write_bytes(b"PK")
    with pytest.raises(UserError, match="cut off"):
        choose_checkpoint("x/arm", "rooms.Looking", tmp_path)


def test_experiments_around() -> None:
    assert experiments_around("a/b/c") == ["a/b", "a"]
    assert experiments_around("a") == []
