"""Every bad input ends in one sentence and status 2, and leaves nothing half-written."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cirlab.cli import main
from tests.tiny_run import BENCHMARK, tiny_experiment


def refused(caplog: pytest.LogCaptureFixture, config: Path, *options: str) -> str:
    """The one sentence that a refused run prints, below whose folder nothing was made."""
    before = set(config.parent.rglob("*"))
    caplog.clear()
    subcommand, *rest = options if options and not options[0].startswith("-") else ("fit", *options)
    assert main([subcommand, "-c", str(config), *rest]) == 2
    after = set(config.parent.rglob("*"))
    assert after == before, "the refused run left something behind"
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert "\n" not in errors[0]
    assert "Traceback" not in errors[0]
    return errors[0]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            {"trainer": {"max_epoch": 3}},
            r"tiny\.yaml: unknown key trainer\.max_epoch; .*max_epochs",
        ),
        ({"trainr": {"max_epochs": 3}}, r"unknown key trainr; did you mean trainer"),
        (
            {"model": {"init_args": {"pretrainde": "x"}}},
            r"unknown key model\.init_args\.pretrainde; did you mean pretrained",
        ),
        (
            {"model": {"init_args": {"optimizer": {"init_args": {"lrr": 1}}}}},
            r"model\.init_args\.optimizer\.init_args\.lrr; did you mean lr",
        ),
        (
            {"model": {"init_args": {"from_scratch": {"embed": 1}}}},
            r"from_scratch\.embed; did you mean embed_dim",
        ),
        (
            {"last_checkpoint": {"init_args": {"every": 1}}},
            r"every; there are: every_n_train_steps",
        ),
        ({"model": {"class_path": "lightning_modules.CLIPP"}}, r"did you mean .*\.CLIP\?"),
        ({"model": {"class_path": "nowhere.CLIP"}}, r"nowhere\.CLIP.* No module named"),
        (
            {"model": {"init_args": {"optimizer": {"init_args": {"lr": "fast"}}}}},
            r"optimizer\.init_args\.lr is fast, but it must be float$",
        ),
        (
            {"data": {"init_args": {"on_error": "skipp"}}},
            r"on_error is skipp, but it must be one of: raise, skip; did you mean skip\?$",
        ),
        (
            {"trainer": {"precision": "64-tru"}},
            r"must be int or one of: transformer-engine, .*16, bf16; did you mean 64-true\?$",
        ),
        ({"trainer": {"max_epochs": "three"}}, r"trainer\.max_epochs is three, .*must be int"),
        (
            {"model": {"init_args": {"model": [1]}}},
            r"model\.init_args\.model is \[1\], .*must be str",
        ),
        (
            {"data": {"init_args": {"benchmarks": []}}},
            rf"monitor is val/{BENCHMARK}/recall_at_10, but the benchmarks of this run are none",
        ),
        (
            {"best_checkpoint": {"init_args": {"monitor": f"{BENCHMARK}/recall_at_1"}}},
            rf"--best_checkpoint\.init_args\.monitor is {BENCHMARK}/recall_at_1, .* to that$",
        ),
        (
            {"best_checkpoint": {"init_args": {"monitor": f"val/{BENCHMARK}/recall_at_3"}}},
            rf"the metrics of {BENCHMARK} are .*recall_at_1",
        ),
        ({"data": {"init_args": {"batch_size": 4096}}}, r"less than one batch of 4096"),
        ({"data": {"init_args": {"eval_batch_size": 0}}}, r"eval_batch_size is 0; set it to 1"),
        ({"model": {"init_args": {"schedule": {"name": "cosin"}}}}, r"schedule\.name is cosin,"),
        ({"model": {"init_args": {"schedule": {"warmup": 5}}}}, r"schedule\.warmup is 5"),
        ({"trainer": {"strategy": "dpp"}}, r"strategy is 'dpp'.*did you mean ddp\?"),
        ({"trainer": {"accelerator": "tcu"}}, r"accelerator is 'tcu', which does not exist"),
        ({"trainer": {"devices": "abc"}}, r"devices is 'abc'; give their number"),
        ({"trainer": {"logger": "${oc.env:NO_SUCH_VARIABLE}"}}, r"needs .* NO_SUCH_VARIABLE"),
    ],
)
def test_wrong_configuration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, overrides: dict[str, Any], says: str
) -> None:
    sentence = refused(caplog, tiny_experiment(tmp_path, **overrides))
    assert re.search(says, sentence), sentence


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--trainer.max_epoch", "3"],
            "no option --trainer.max_epoch; did you mean --trainer.max_epochs?",
        ),
        (["--trainr.devices=1"], "no option --trainr.devices; did you mean --trainer.devices?"),
        (["--rezume=true"], "no option --rezume; did you mean --resume?"),
        (["--qqqq=1"], "no option --qqqq; see --help"),
        (["fit", "rubbish"], "no option rubbish; see --help"),
        (["--model.init_args.pretrainde", "x"], "the command line: unknown key"),
        (["--trainer.devices", "4097"], "trainer.devices is 4097, but this machine has"),
        (["--ckpt_path", "nix.ckpt"], "there is no checkpoint nix.ckpt"),
        (["validate"], "experiment tiny has no checkpoint"),
        (["validate", "--ckpt_path", "nix.ckpt"], "there is no checkpoint nix.ckpt"),
    ],
)
def test_wrong_options(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: list[str], says: str
) -> None:
    assert says in refused(caplog, tiny_experiment(tmp_path), *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sentence = refused(caplog, tiny_experiment(tmp_path), "--trainer.accelerator", "cuda")
    assert "trainer.accelerator is cuda" in sentence


def test_missing_data_root(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATA_ROOT", raising=False)
    root = {"init_args": {"root": "${oc.env:DATA_ROOT}"}}
    sentence = refused(caplog, tiny_experiment(tmp_path, data=root))
    assert "data.init_args.root needs the environment variable DATA_ROOT" in sentence


def test_weights_that_are_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = {"init_args": {"from_scratch": None, "model": "local-dir:no/such/folder"}}
    sentence = refused(caplog, tiny_experiment(tmp_path, model=model))
    assert "no/such/folder" in sentence


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_experiment(tmp_path_factory.mktemp("trained"), trainer={"max_epochs": 1})
    assert main(["fit", "-c", str(config)]) == 0
    return config


def test_what_a_run_leaves(trained: Path) -> None:
    run = trained.parent / "runs" / "tiny" / "version_0"
    assert {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()} == {
        "config.yaml",
        "metrics.csv",
        "results.json",
        "run.json",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
    }
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 1
    # Null switches a callback off that the base has on: the record has to say so.
    assert config["contact_sheet"] is None


def test_validation_takes_the_newest_runs_best(
    trained: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "-c", str(trained)]) == 0
    assert "evaluating" in caplog.text
    assert "best.ckpt" in caplog.text
    assert re.search(r"CLIP( +\d+\.\d\d){3}", capsys.readouterr().out)
    assert (trained.parent / "runs" / "tiny" / "version_1" / "results.json").is_file()


def test_a_recorded_configuration_runs_again(trained: Path) -> None:
    record = trained.parent / "runs" / "tiny" / "version_0" / "config.yaml"
    assert main(["validate", "-c", str(record)]) == 0


def test_a_configuration_that_contradicts_the_checkpoint(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    option = "--model.init_args.from_scratch.embed_dim=8"
    sentence = refused(caplog, trained, "validate", option)
    assert "model.init_args.from_scratch.embed_dim is 8" in sentence
    assert "but 16 in the checkpoint" in sentence
    sentence = refused(caplog, trained, "--resume=true", "--data.init_args.batch_size=32")
    assert "data.init_args.batch_size is 32" in sentence


def test_a_checkpoint_of_another_method(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = trained.parent / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    state["config"]["model"]["class_path"] = "lightning_modules.CoLLM"
    torch.save(state, tmp_path / "collm.ckpt")
    options = ("--ckpt_path", str(tmp_path / "collm.ckpt"))
    assert "checkpoint of lightning_modules.CoLLM" in refused(caplog, trained, *options)


def test_a_checkpoint_of_another_architecture(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a recorded configuration the weights themselves tell."""
    path = trained.parent / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    del state["config"]
    name = next(iter(state["state_dict"]))
    state["state_dict"][name] = torch.zeros(3, 3, 3)
    torch.save(state, tmp_path / "other.ckpt")
    options = ("validate", "--ckpt_path", str(tmp_path / "other.ckpt"))
    assert "another architecture" in refused(caplog, trained, *options)


def test_a_full_disk_while_saving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second checkpoint does not fit; the first one can still be resumed from."""
    save, saved = torch.save, []

    def full(state: Any, file: Any) -> None:
        if saved:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(state["global_step"])
        save(state, file)

    config = tiny_experiment(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert main(["fit", "-c", str(config)]) == 2
    assert "No space left on device" in caplog.text
    assert "is whole" in caplog.text
    folder = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == saved[0]
    assert main(["fit", "-c", str(config), "--resume", "true"]) == 0
