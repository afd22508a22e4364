from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.command.configuration import (
    EXPERIMENTS,
    config_files,
    experiment_name,
    experiment_names,
    require_experiment,
    with_base,
)
from cirlab.errors import UserError


def test_files_in_every_spelling() -> None:
    args = ["fit", "-c", "a.yaml", "--x", "1", "--config=b.yaml", "--config", "c.yaml"]
    assert config_files(args) == [Path("a.yaml"), Path("b.yaml"), Path("c.yaml")]
    assert config_files(["fit", "-c"]) == [Path()]


def test_the_base_comes_first_and_once() -> None:
    args = with_base(["fit", "-c", "a.yaml", "--seed_everything", "3"])
    assert args == ["fit", "-c", str(EXPERIMENTS / "_base.yaml"), *args[3:]]
    assert args[3:] == ["-c", "a.yaml", "--seed_everything", "3"]
    assert with_base(args) == args
    assert with_base(["--help"]) == ["--help"]


def test_an_own_experiments_folder_has_its_own_base(tmp_path: Path) -> None:
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    (tmp_path / "mine" / "_base.yaml").touch()
    file = tmp_path / "mine" / "deep" / "x.yaml"
    file.touch()
    assert with_base(["fit", "-c", str(file)])[2] == str(tmp_path / "mine" / "_base.yaml")
    assert experiment_name([tmp_path / "mine" / "_base.yaml", file]) == "deep/x"


def test_names_of_experiments() -> None:
    names = experiment_names()
    assert "collm" in names
    assert not any("_base" in name or "overlays" in name for name in names)
    assert experiment_name([EXPERIMENTS / "_base.yaml", EXPERIMENTS / "collm.yaml"]) == "collm"
    assert experiment_name([Path("somewhere/else.yaml")]) == "else"
    # What comes after an experiment changes it, wherever it lies.
    assert experiment_name([EXPERIMENTS / "collm.yaml", Path("/tmp/small.yaml")]) == "collm"


def test_an_overlay_names_nothing_and_brings_no_base() -> None:
    experiment = EXPERIMENTS / "ablations" / "no_slerp.yaml"
    overlay = EXPERIMENTS / "overlays" / "submission_cirr.yaml"
    args = with_base(["validate", "-c", str(experiment), "-c", str(overlay)])
    bases = [EXPERIMENTS / "_base.yaml", EXPERIMENTS / "ablations" / "_base.yaml"]
    assert config_files(args) == [*bases, experiment, overlay]
    assert experiment_name(config_files(args)) == "ablations/no_slerp"
    assert experiment_name([EXPERIMENTS / "_base.yaml", overlay]) == "overlays/submission_cirr"


def test_an_unknown_experiment_suggests_a_known_one() -> None:
    with pytest.raises(UserError, match=r"did you mean collm\?"):
        require_experiment(["fit", "-c", "experiments/colm.yaml"])
    with pytest.raises(UserError, match=r"there are: .*collm"):
        require_experiment(["fit", "-c", "experiments/qqqq.yaml"])
    with pytest.raises(UserError, match="no experiment is given"):
        require_experiment(["fit"])
    for asked in ("--help", "-h", "--data.help", "--model.help=lightning_modules.CLIP"):
        require_experiment(["fit", asked])
    require_experiment(["fit", "-c", str(EXPERIMENTS / "collm.yaml")])
