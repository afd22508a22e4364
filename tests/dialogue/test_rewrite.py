"""The command that rewrites whole benchmarks, with a real model that talks nonsense."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cirlab.benchmarks.chatir import ChatIR
from cirlab.benchmarks.folder_dialogues import FolderDialogues
from cirlab.benchmarks.world_dialogue import WorldDialogue
from cirlab.dialogue.rewrite import main
from tests.datamodules.toys import write_folder, write_jsonl
from tests.triplets.talkers import write_tiny_chat_model

COMMON = ["--device", "cpu", "--max-new-tokens", "6", "--prompt", "bare"]


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = write_tiny_chat_model(tmp_path_factory.mktemp("llm"), positions=2048)
    return [*COMMON, "--model", str(folder)]


def world(*options: str) -> list[str]:
    return ["--benchmark", "world", "--families", "5", "--limit", "3", *options]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_killed_command_goes_on_and_what_it_writes_is_read_back(
    nonsense: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole.json", tmp_path / "killed.json"
    options = [*world("--batch-size", "2"), *nonsense]
    assert main([*options, "--output", str(whole)]) == 0
    assert f"3 dialogues in {whole}" in capsys.readouterr().out
    counts = read(whole.with_suffix(".counts.json"))
    assert counts["dialogues"] == 3 and counts["rounds"] == 30

    command = [sys.executable, "-m", "cirlab.dialogue.rewrite", *options, "--output", str(killed)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = killed.with_suffix(".rewritten.jsonl")
    while process.poll() is None and not (lines.exists() and lines.stat().st_size):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    begun = lines.read_bytes()
    assert 0 < len(begun) < len(whole.with_suffix(".rewritten.jsonl").read_bytes())
    assert not killed.exists()
    assert main([*options, "--output", str(killed)]) == 0
    for suffix in (".json", ".rewritten.jsonl", ".counts.json"):
        assert killed.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()
    keys = [json.loads(line)["key"] for line in lines.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 30

    own, rewritten = (WorldDialogue(5, dialogues=3), WorldDialogue(5, played=str(whole)))
    own.setup(), rewritten.setup()
    assert [q.targets for q in rewritten.queries] == [q.targets for q in own.queries]
    assert [q.text for q in rewritten.queries[::11]] == [q.text for q in own.queries[::11]]
    texts = [text for each in read(whole) for text in each["dialog"]]
    assert [q.text for q in rewritten.queries] == texts, "the newest alone asks"
    assert rewritten.protocol().query_template == "{round t} alone"


def write_chatir(root: Path) -> Path:
    paths = [f"unlabeled2017/{i}.jpg" for i in range(3)]
    files = {
        "ChatIR_Protocol/Search_Space_val_50k.json": paths,
        "dialogues/Human_BLIP2.json": [
            {"img": paths[1], "dialog": ["a dog", "what colour? brown", "where? on a beach"]},
            {"img": paths[0], "dialog": ["a cat", "what colour? grey"]},
        ],
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    return root


def test_chatirs_dialogues_become_dars_format(nonsense: list[str], tmp_path: Path) -> None:
    root, path = write_chatir(tmp_path / "chatir"), tmp_path / "rewritten.json"
    options = ["--benchmark", "chatir", "--root", str(root), "--dialogues", "Human_BLIP2"]
    assert main([*options, *nonsense, "--no-official", "--output", str(path)]) == 0
    rows = read(path)
    assert [row["img"] for row in rows] == ["unlabeled2017/1.jpg", "unlabeled2017/0.jpg"]
    assert [row["dialog"][0] for row in rows] == ["a dog", "a cat"]
    assert [len(row["dialog"]) for row in rows] == [3, 2]
    again = ChatIR(str(root), str(path), official=False)
    again.setup()
    assert [query.text for query in again.queries] == [t for row in rows for t in row["dialog"]]


def test_dialogues_about_a_folder(nonsense: list[str], tmp_path: Path) -> None:
    write_folder(tmp_path / "data", split="val")
    targets = ["images/3.jpg", "images/1.jpg"]
    row = {"id": "x", "rounds": ["a dog", "what colour? brown"], "targets": targets}
    write_jsonl(tmp_path / "data" / "val" / "dialogues.jsonl", [row])
    path = tmp_path / "rewritten.json"
    options = ["--benchmark", "folder", "--root", str(tmp_path / "data"), *nonsense]
    assert main([*options, "--output", str(path)]) == 0
    assert [(row["img"], row["dialog"][0]) for row in read(path)] == [("images/3.jpg", "a dog")]
    again = FolderDialogues(str(tmp_path / "data"), "val", "folder", played=str(path))
    again.setup()
    assert [query.text for query in again.queries] == read(path)[0]["dialog"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--benchmark", "chatir"], "--benchmark chatir needs a data folder; name it with --root"),
        (world("--prompt", "none"), "there is no prompt 'none'"),
        (world("--device", "abacus"), "there is no device 'abacus' here"),
        (world("--batch-size", "0"), "batch_size is 0"),
        (world("--limit", "0"), "has 150 dialogues, and 1 or more are needed"),
        (world("--output", "a.jsonl"), "the output a.jsonl must end in .json"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    options: list[str], problem: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    common = [*COMMON, "--model", "no/such-model", "--output", str(tmp_path / "a.json")]
    assert main([*common, *options]) == 2
    assert problem in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_what_is_rewritten_is_not_rewritten_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_chatir(tmp_path / "chatir")
    rows = [{"img": "unlabeled2017/1.jpg", "dialog": ["a dog", "a brown dog"]}]
    (root / "dar.json").write_text(json.dumps(rows))
    options = ["--benchmark", "chatir", "--root", str(root), "--dialogues", "dar.json", *COMMON]
    output = ["--no-official", "--model", "no/such-model", "--output", str(tmp_path / "a.json")]
    assert main([*options, *output]) == 2
    assert "captions that were rewritten already; use them as they are" in caplog.text


def test_files_of_others_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.json"
    path.write_text("[]")
    assert main([*world(*COMMON), "--model", "no/such-model", "--output", str(path)]) == 2
    assert "is there, but not a.rewritten.jsonl" in caplog.text
    assert path.read_text() == "[]"
