"""The Makefile, as far as it goes without making an environment."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cirlab.command.configuration import experiment_names

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


NAMES = "EXP ARGS RESUME CKPT OUT MERGED PAIRS LLM BENCH ROOT TARGET IMAGE EXPS".split()


def make(*args: str, **shell: str) -> subprocess.CompletedProcess[str]:
    # As many targets call make themselves, its own variables must not leak into this one.
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", **shell}
    command = ["make", "--no-print-directory", *args]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_help_is_the_default_and_lists_every_target() -> None:
    shown = make()
    assert shown.returncode == 0
    assert shown.stdout == make("help").stdout
    targets = "train validate arms export submission chat demo data-check triplets dialogues"
    targets += " rewrite compare rounds dashboard test lint bench zoo clean"
    for target in targets.split():
        assert re.search(rf"^  {target} +\S", shown.stdout, re.MULTILINE), target


@pytest.mark.parametrize("target", ["train", "validate", "arms", "export", "submission", "chat"])
@pytest.mark.parametrize("name", ["", "no_such_experiment"])
def test_a_wrong_experiment_lists_those_that_exist(target: str, name: str) -> None:
    shown = make(target, f"EXP={name}")
    assert shown.returncode == 2
    for experiment in experiment_names():
        assert f"  {experiment}\n" in shown.stderr
    assert (name or "EXP is not set") in shown.stderr


@pytest.mark.parametrize("name", ["collm clip", "%", "coll%"])
def test_an_experiment_is_one_name_as_it_stands(name: str) -> None:
    shown = make("train", f"EXP={name}")
    assert shown.returncode == 2 and f"there is no experiment '{name}'" in shown.stderr


def test_what_train_and_validate_call() -> None:
    options = ["--dry-run", "EXP=collm", "ARGS=--trainer.max_epochs 1"]
    call = "-m cirlab fit -c experiments/collm.yaml"
    assert f"{call} --trainer.max_epochs 1\n" in make("train", *options).stdout
    resumed = make("train", "RESUME=1", *options).stdout
    assert f"{call} --resume true --trainer.max_epochs 1" in resumed
    checked = make("validate", "CKPT=a.ckpt", *options).stdout
    assert '-m cirlab validate -c experiments/collm.yaml --ckpt_path "a.ckpt"' in checked


def test_what_arms_calls() -> None:
    assert "-m cirlab.arms collm\n" in make("arms", "--dry-run", "EXP=collm").stdout
    options = ["EXP=collm", "CKPT=a b.ckpt", "ARGS=--by facet --trainer.precision 32-true"]
    called = make("arms", "--dry-run", *options).stdout
    wanted = '-m cirlab.arms collm --ckpt_path "a b.ckpt" --by facet --trainer.precision 32-true'
    assert wanted in called


def test_what_export_calls() -> None:
    call = "-m cirlab export -c experiments/collm.yaml"
    plain = make("export", "--dry-run", "EXP=collm").stdout
    assert call in plain
    assert not any(option in plain for option in ("--ckpt_path", "--output", "--merged"))
    options = ["EXP=collm", "CKPT=a.ckpt", "OUT=a b", "MERGED=1", "ARGS=--overwrite true"]
    called = make("export", "--dry-run", *options).stdout
    assert call + ' --ckpt_path "a.ckpt" --output "a b" --merged true --overwrite true' in called


def test_what_chat_and_demo_call() -> None:
    call = "-m cirlab chat -c experiments/collm.yaml"
    assert f"{call}\n" in make("chat", "--dry-run", "EXP=collm").stdout
    options = ["EXP=collm", "CKPT=untrained", "ROOT=a b", "TARGET=c d.jpg", "ARGS=--top 5"]
    called = make("chat", "--dry-run", *options).stdout
    assert f'{call} --ckpt_path "untrained" --root "a b" --target "c d.jpg" --top 5\n' in called
    assert "-m cirlab.demo\n" in make("demo", "--dry-run").stdout
    called = make("demo", "--dry-run", "IMAGE=a b.jpg", "ARGS=--text x").stdout
    assert '-m cirlab.demo --image "a b.jpg" --text x\n' in called


def test_what_rounds_and_dialogues_call_and_need() -> None:
    assert "-m cirlab.reporting.rounds\n" in make("rounds", "--dry-run").stdout
    called = make("rounds", "--dry-run", "EXPS=a b", "OUT=c d.png", "ARGS=--all").stdout
    assert '-m cirlab.reporting.rounds a b -o "c d.png" --all\n' in called
    given = ["BENCH=folder", "OUT=a b.json"]
    called = make("dialogues", "--dry-run", *given, "ROOT=/c d", "ARGS=--limit 2").stdout
    wanted = '-m cirlab.dialogue --benchmark "folder" --root "/c d" --output "a b.json" --limit 2'
    assert f"{wanted}\n" in called
    assert "--root" not in make("dialogues", "--dry-run", *given).stdout
    for number in range(2):
        shown = make("dialogues", *given[:number], *given[number + 1 :])
        assert shown.returncode == 2 and "dialogues need BENCH=" in shown.stderr


@pytest.mark.parametrize("name", ["", "coco_facet"])
def test_a_benchmark_without_server_lists_those_with_one(name: str) -> None:
    shown = make("submission", "EXP=collm", f"BENCH={name}")
    assert shown.returncode == 2
    assert "  circo\n  cirr\n" in shown.stderr
    assert (name or "BENCH is not set") in shown.stderr


def test_what_submission_and_data_check_call() -> None:
    options = ["--dry-run", "EXP=collm", "BENCH=cirr"]
    files = "-c experiments/collm.yaml -c experiments/overlays/submission_cirr.yaml"
    called = make("submission", *options, "CKPT=a b.ckpt", "ARGS=--x 1").stdout
    assert f'-m cirlab validate {files} --ckpt_path "a b.ckpt" --x 1\n' in called
    assert "--ckpt_path" not in make("submission", *options).stdout
    called = make("data-check", "--dry-run", "BENCH=cirr", "ROOT=/a b", "ARGS=--decode").stdout
    assert '-m cirlab.data_check cirr --root "/a b" --decode' in called
    assert "--root" not in make("data-check", "--dry-run", "BENCH=cirr").stdout


def test_what_triplets_calls_and_needs() -> None:
    given = ["PAIRS=a b.jsonl", "LLM=zoo:tiny_mllm", "OUT=c.jsonl"]
    called = make("triplets", "--dry-run", *given, "ARGS=--tries 2").stdout
    wanted = '-m cirlab.triplets --pairs "a b.jsonl" --model "zoo:tiny_mllm" --output "c.jsonl"'
    assert f"{wanted} --tries 2" in called
    for number in range(3):
        shown = make("triplets", *given[:number], *given[number + 1 :])
        assert shown.returncode == 2
        assert "triplets need PAIRS=" in shown.stderr


def test_what_rewrite_calls_and_needs() -> None:
    given = ["BENCH=chatir", "LLM=zoo:tiny_mllm", "OUT=a b.json"]
    called = make("rewrite", "--dry-run", *given, "ROOT=/c d", "ARGS=--limit 2").stdout
    wanted = '--benchmark "chatir" --root "/c d" --model "zoo:tiny_mllm" --output "a b.json"'
    assert f"-m cirlab.dialogue.rewrite {wanted} --limit 2" in called
    for number in range(3):
        shown = make("rewrite", *given[:number], *given[number + 1 :])
        assert shown.returncode == 2 and "rewrite needs BENCH=" in shown.stderr


CALLS = {
    "train": ["EXP=collm"],
    "validate": ["EXP=collm"],
    "arms": ["EXP=collm"],
    "export": ["EXP=collm"],
    "submission": ["EXP=collm", "BENCH=cirr"],
    "chat": ["EXP=collm"],
    "demo": [],
    "data-check": [],
    "dialogues": ["BENCH=world", "OUT=a.json"],
    "rewrite": ["BENCH=world", "LLM=b", "OUT=a.json"],
    "rounds": [],
    "triplets": ["PAIRS=a", "LLM=b", "OUT=c"],
    "compare": [],
    "dashboard": [],
    "test": [],
    "lint": [],
    "bench": [],
    "zoo": [],
}


@pytest.mark.parametrize("target", CALLS)
def test_what_is_shown_are_whole_commands_that_the_shells_variables_do_not_change(
    target: str,
) -> None:
    # As if the environment stood.
    options = ["--dry-run", "READY=", *CALLS[target]]
    shown = make(target, *options)
    assert shown.returncode == 0
    for line in shown.stdout.splitlines():
        assert line.split()[0].startswith(".venv/bin/"), line
        assert line == line.strip() and "  " not in line and not line.endswith("\\")
    assert make(target, *options, **dict.fromkeys(NAMES, "shells")).stdout == shown.stdout


@pytest.mark.parametrize("name", ["EXP", "BENCH", "OUT"])
def test_what_is_missing_is_not_taken_from_the_shell(name: str) -> None:
    targets = {"EXP": "train", "BENCH": "submission", "OUT": "triplets"}
    given = [option for option in CALLS[targets[name]] if not option.startswith(f"{name}=")]
    shown = make(targets[name], *given, **{name: "cirr" if name == "BENCH" else "collm"})
    assert shown.returncode == 2
    assert "is not set" in shown.stderr or "triplets need" in shown.stderr
