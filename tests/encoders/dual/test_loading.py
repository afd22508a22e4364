"""Dual encoders by name: what is said of names and folders that give none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.encoders.names import ZOO
from cirlab.errors import UserError


def test_folders_that_hold_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no open_clip_config\.json"):
        load_dual_encoder(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_dual_encoder(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    with pytest.raises(UserError, match="holds no weights"):
        load_dual_encoder(f"local-dir:{tmp_path}")


def test_weights_that_are_nowhere_are_named_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"'ViT-Q-99' \(clip\) are neither in a local folder"):
        load_dual_encoder("ViT-Q-99")


@pytest.mark.parametrize("broken", ["configuration", "weights"])
def test_weights_that_lie_there_but_do_not_load_are_told_so(tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(ZOO / "tiny_clip", folder)
    config, weights = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    if broken == "configuration":
        config.write_text(config.read_text().replace('"embed_dim": 128', '"embed_dim": 64'))
        says = r"do not fit the configuration beside them: .*cause: .*size mismatch for"
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
        says = r"lie in a local folder but cannot be read; copy them again"
    with pytest.raises(UserError, match=says) as caught:
        load_dual_encoder(f"local-dir:{folder}")
    assert "hub" not in str(caught.value)
