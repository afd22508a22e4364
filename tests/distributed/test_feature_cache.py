"""Two processes compute half of the features each, and hold all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch

from cirlab import distributed
from cirlab.encoders.feature_cache import cached_features
from cirlab.errors import UserError
from cirlab.records import Image
from tests.distributed.processes import run_in_processes
from tests.encoders.test_feature_cache import Backbone, images


def share(rank: int, folder: Path) -> dict[str, object]:
    backbone = Backbone()
    cached_features(folder, "vit", images(5), Backbone())
    cache = cached_features(folder, "vit", images(*range(9)), backbone)
    own = folder / f"disk of {rank}"
    alone = Backbone()
    apart = cached_features(own, "vit", images(*range(4)), alone)

    def broken(some: Sequence[Image]) -> Iterable[torch.Tensor]:
        if distributed.rank() == 1:
            raise UserError("image 3 does not decode; remove it")
        return Backbone()(some)

    with pytest.raises(UserError) as caught:
        cached_features(folder, "resnet", images(*range(4)), broken)
    return {
        "asked": backbone.asked,
        "features": cache(images(*range(9)))[:, 0].tolist(),
        "alone": sorted(alone.asked),
        "apart": apart(images(*range(4)))[:, 0].tolist(),
        "error": str(caught.value),
    }


def test_processes_share_the_work(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    first, second = run_in_processes(share, tmp_path, tmp_path / "cache")
    assert (first["asked"], second["asked"]) == (["0", "2", "4", "7"], ["1", "3", "6", "8"])
    for process in (first, second):
        assert process["features"] == list(range(9))
        # Without a common disk each has to compute all of them, but none is missing.
        assert process["apart"] == list(range(4))
        assert process["alone"] == ["0", "1", "2", "3"]
        assert process["error"] == "image 3 does not decode; remove it"


def on_a_disk_that_is_new(rank: int, folder: Path) -> dict[str, object]:
    """The first process's disk holds everything, the second's nothing."""
    own = folder / f"disk of {rank}"
    backbone = Backbone()

    def broken(some: Sequence[Image]) -> Iterable[torch.Tensor]:
        raise UserError("image 0 does not decode; remove it")

    with pytest.raises(UserError) as caught:
        cached_features(own, "vit", images(*range(4)), broken)
    cache = cached_features(own, "vit", images(*range(4)), backbone)
    return {
        "asked": backbone.asked,
        "features": cache(images(*range(4)))[:, 0].tolist(),
        "error": str(caught.value),
    }


def test_a_disk_that_lacks_what_the_first_has_is_filled(tmp_path: Path) -> None:
    cached_features(tmp_path / "disk of 0", "vit", images(*range(4)), Backbone())
    first, second = run_in_processes(on_a_disk_that_is_new, tmp_path, tmp_path)
    assert (first["asked"], second["asked"]) == ([], ["0", "1", "2", "3"])
    for process in (first, second):
        assert process["features"] == list(range(4))
        assert process["error"] == "image 0 does not decode; remove it"
