"""What a subcommand starts from, and what is said where there is nothing to start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.cli.start import Start, start_from_trained, start_training
from cirlab.errors import UserError
from cirlab.reporting.run import UNTRAINED, Run

METHOD = "lightning_modules.CLIP"


def run(root: Path, experiment: str, version: int) -> Run:
    checkpoints = root / experiment / f"version_{version}" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("last.ckpt", "best.ckpt"):
        (checkpoints / name).touch()
    return Run(checkpoints.parent)


def test_a_training_starts_from_what_is_given_or_from_nothing(tmp_path: Path) -> None:
    run(tmp_path, "x", 0)
    for given in (None, UNTRAINED):
        assert start_training("x", tmp_path, given=given, resume=False) == Start()
    start = start_training("x", tmp_path, given="a.ckpt", resume=False)
    assert start == Start(Path("a.ckpt"))


def test_a_resumed_training_goes_on_with_the_newest_run(tmp_path: Path) -> None:
    assert start_training("x", tmp_path, given=None, resume=True) == Start()
    run(tmp_path, "x", 0)
    newest = run(tmp_path, "x", 1)
    assert start_training("x", tmp_path, given=None, resume=True) == Start(newest.last, newest)


def test_an_evaluation_takes_what_is_given_before_the_best(tmp_path: Path) -> None:
    best = run(tmp_path, "x", 0).best
    options = {"subcommand": "validate", "method": METHOD}
    for given, taken in ((None, best), ("a.ckpt", Path("a.ckpt")), (UNTRAINED, None)):
        assert start_from_trained("x", tmp_path, given=given, **options) == Start(taken)


@pytest.mark.parametrize(("subcommand", "untrained"), [("validate", True), ("export", False)])
def test_where_nothing_was_trained_an_export_is_offered_no_untrained_weights(
    tmp_path: Path, subcommand: str, untrained: bool
) -> None:
    with pytest.raises(UserError, match="experiment x has no checkpoint below") as caught:
        start_from_trained("x", tmp_path, given=None, subcommand=subcommand, method=METHOD)
    assert (UNTRAINED in str(caught.value)) == untrained
