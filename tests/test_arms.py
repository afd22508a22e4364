"""All arms of an experiment, on real runs of a tiny one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cirlab.arms import arms_of, checkpoint_for, evaluate, main
from cirlab.cli import main as cirlab
from cirlab.command.configuration import EXPERIMENTS
from cirlab.errors import UserError
from tests.tiny_run import BENCHMARK, tiny_experiment

PLAIN: dict[str, Any] = {"seed_everything": 0}
AS_IT_IS = {"ckpt_path": "untrained"}
BROKEN = {"data": {"init_args": {"eval_batch": 1}}}
OTHER = {"model": {"class_path": "lightning_modules.CoLLM"}}


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `experiments` is, with `tiny.yaml`, which has been trained."""
    folder = tmp_path_factory.mktemp("experiments")
    shutil.copy(EXPERIMENTS / "_base.yaml", folder)
    whole = tiny_experiment(folder, trainer={"max_epochs": 1})
    (folder / "tiny").mkdir()
    shutil.copy(whole, folder / "tiny" / "_base.yaml")
    assert cirlab(["fit", "-c", str(whole)]) == 0
    return folder


def best(folder: Path) -> Path:
    return folder / "runs" / "tiny" / "version_0" / "checkpoints" / "best.ckpt"


def set_arms(folder: Path, **arms: dict[str, Any]) -> list[Path]:
    """Write the arms of `tiny`, in place of those before and of their runs."""
    for file in (folder / "tiny").glob("[!_]*.yaml"):
        file.unlink()
        shutil.rmtree(folder / "runs" / "tiny" / file.stem, ignore_errors=True)
    files = [folder / "tiny" / f"{name}.yaml" for name in arms]
    for file, content in zip(files, arms.values(), strict=True):
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return files


def weights(folder: Path, arm: str) -> list[str]:
    """Which weights the runs of an arm evaluated."""
    runs = sorted((folder / "runs" / "tiny" / arm).glob("version_*/run.json"))
    return [json.loads(run.read_text())["weights"] for run in runs]


def arms(folder: Path, *options: str) -> int:
    return main(["tiny", "--experiments", str(folder), "--runs", str(folder / "runs"), *options])


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """An arm's command line is called as a function, which spares starting Python."""
    monkeypatch.setattr("cirlab.arms._cirlab", cirlab)


def test_arms_are_the_files_of_the_experiments_folder(experiments: Path) -> None:
    set_arms(experiments, k_100=PLAIN, k_20=PLAIN, all=PLAIN)
    assert [file.stem for file in arms_of("tiny", experiments)] == ["all", "k_20", "k_100"]


@pytest.mark.parametrize("name", ["tin", "tiny/all"])
def test_an_experiment_without_arms_names_those_with(
    experiments: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    set_arms(experiments, all=PLAIN)
    assert main([name, "--experiments", str(experiments)]) == 2
    assert f"experiment {name} has no arms" in caplog.text
    assert caplog.text.endswith("there are those of: tiny\n")


def test_nothing_is_evaluated_without_a_checkpoint(
    experiments: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_arms(experiments, plain=PLAIN)
    command = ["tiny", "--experiments", str(experiments), "--runs"]
    assert main([*command, str(tmp_path)]) == 2
    assert f"experiment tiny has no checkpoint below {tmp_path} yet; train it" in caplog.text
    assert main([*command, str(experiments / "runs"), "--ckpt_path", "nix.ckpt"]) == 2
    assert "there is no checkpoint nix.ckpt" in caplog.text
    assert weights(experiments, "plain") == []


def test_which_arm_is_given_the_experiments_checkpoint(experiments: Path) -> None:
    contents = {"plain": PLAIN, "as_it_is": AS_IT_IS, "other": OTHER}
    short = {"model": {"class_path": "CLIP"}}
    plain, as_it_is, other, shortened = set_arms(experiments, **contents, short=short)
    trained = str(best(experiments))
    assert checkpoint_for(plain, trained) == checkpoint_for(shortened, trained) == trained
    assert checkpoint_for(as_it_is, trained) is None
    assert checkpoint_for(other, trained) is None
    assert checkpoint_for(other, "untrained") == "untrained"


@pytest.mark.usefixtures("in_this_process")
def test_a_broken_arm_hides_no_other(
    experiments: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    set_arms(experiments, as_it_is=AS_IT_IS, broken=BROKEN, other=OTHER, plain=PLAIN)
    (experiments / "tiny" / "no_yaml.yaml").write_text("a: [")
    assert arms(experiments, "--data.init_args.eval_batch_size", "20") == 2
    assert weights(experiments, "plain") == [str(best(experiments))]
    assert weights(experiments, "as_it_is") == ["untrained"]
    table = capsys.readouterr().out.rpartition(f"\n{BENCHMARK}\n")[2]
    named = [line.split(" #")[0].strip() for line in table.splitlines() if " #0" in line]
    assert named == ["tiny/as_it_is", "tiny/plain"]
    assert "unknown key data.init_args.eval_batch;" in caplog.text
    assert "no_yaml.yaml is not valid YAML" in caplog.text
    assert "3 of 5 arms have no results: tiny/broken, tiny/no_yaml, tiny/other;" in caplog.text


@pytest.mark.usefixtures("in_this_process")
def test_a_tag_that_is_not_there_is_told_below_the_table(
    experiments: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    set_arms(experiments, plain=PLAIN)
    assert arms(experiments, "--ckpt_path", "untrained", "--by", "facet") == 2
    assert "tiny/plain #0 (untrained)" in capsys.readouterr().out
    assert "has the tag 'facet'; there are: none" in caplog.text
    assert arms(experiments) == 0
    assert weights(experiments, "plain") == ["untrained", str(best(experiments))]


def test_an_arm_runs_in_a_process_of_its_own(
    experiments: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (broken,) = set_arms(experiments, broken=BROKEN)
    with pytest.raises(UserError, match="tiny/broken ended with status 2"):
        evaluate(broken, None, [], experiments / "runs")
    assert "unknown key data.init_args.eval_batch" in capfd.readouterr().err


def test_an_arm_by_itself_takes_the_experiments_checkpoint(
    experiments: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, as_it_is = set_arms(experiments, plain=PLAIN, as_it_is=AS_IT_IS)
    assert cirlab(["validate", "-c", str(plain)]) == 0
    assert f"evaluating {best(experiments)}" in caplog.text
    assert weights(experiments, "plain") == [str(best(experiments))]
    assert cirlab(["validate", "-c", str(as_it_is)]) == 0
    assert weights(experiments, "as_it_is") == ["untrained"]


def test_what_is_evaluated_as_it_is_trains_from_there(experiments: Path) -> None:
    (as_it_is,) = set_arms(experiments, as_it_is=AS_IT_IS)
    assert cirlab(["fit", "-c", str(as_it_is)]) == 0
    assert weights(experiments, "as_it_is") == ["trained here"]


def test_what_to_train_where_no_checkpoint_is_told(
    experiments: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (plain,) = set_arms(experiments, plain=PLAIN)
    monkeypatch.setattr("cirlab.cli.start.experiment_names", lambda: ["tiny", "tiny/plain"])
    logger = {"class_path": "callbacks.CsvLog", "init_args": {"save_dir": str(tmp_path)}}
    options = ["--trainer.logger", json.dumps([logger])]
    assert cirlab(["validate", "-c", str(plain), *options]) == 2
    said = f"tiny/plain has no checkpoint below {tmp_path} yet; train it or tiny, or give --ckpt_p"
    assert said in caplog.text
