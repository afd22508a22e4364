from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cirlab.triplets.__main__ import main
from tests.datamodules.toys import write_images, write_jsonl
from tests.triplets.talkers import caption_of, write_tiny_chat_model

COUNT = 40


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("data")
    names = write_images(root, COUNT)
    pairs = [{"image": name, "captions": [caption_of(i)]} for i, name in enumerate(names)]
    path = write_jsonl(root / "train" / "pairs.jsonl", pairs)
    model = write_tiny_chat_model(root / "model")
    given = {"pairs": path, "images": root, "model": model, "tries": 1, "batch-size": 4}
    more = {"max-new-tokens": 24, "device": "cpu"}
    return [part for key, value in (given | more).items() for part in (f"--{key}", str(value))]


def aside(path: Path) -> Path:
    return path.with_suffix(".set_aside.jsonl")


def test_nonsense_is_counted_by_reason_and_kept(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "triplets.jsonl"
    assert main([*options, "--output", str(path)]) == 0
    rows = [json.loads(line) for line in aside(path).read_text().splitlines()]
    assert path.read_text() == ""
    assert sorted(row["pair"] for row in rows) == list(range(COUNT))
    assert {row["reason"] for row in rows} <= {"no JSON object", "cut off at the longest answer"}
    assert all(len(row["answers"]) == 2 for row in rows)
    shown = capsys.readouterr().out
    assert f"0 triplets in {path}" in shown
    assert f"{COUNT} of {COUNT} answers set aside" in shown


def test_a_killed_command_goes_on_to_the_files_of_an_undisturbed_one(
    options: list[str], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert main([*options, "--output", str(whole)]) == 0
    command = [sys.executable, "-m", "cirlab.triplets", *options, "--output", str(killed)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not (aside(killed).exists() and aside(killed).stat().st_size):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    begun = aside(killed).read_bytes()
    assert 0 < len(begun) < len(aside(whole).read_bytes())
    # As if the kill had come while a line was written.
    aside(killed).write_bytes(begun[:-7])
    assert main([*options, "--output", str(killed)]) == 0
    assert aside(killed).read_bytes() == aside(whole).read_bytes()


def test_the_output_is_looked_at_before_the_model(
    options: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    output = str(tmp_path / "folder.jsonl")
    assert main([*options, "--output", output, "--model", "zoo:none"]) == 2
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert f"the output {output} cannot be written (Is a directory" in record.getMessage()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (["--images", "nowhere"], "40 of 40 images are missing"),
        (["--pairs", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--model", "zoo:none"], "the zoo holds no model 'zoo:none'"),
        (["--prompt", "none"], "there is no prompt 'none'"),
        (["--device", "abacus"], "there is no device 'abacus' here"),
        (["--batch-size", "0"], "batch_size is 0"),
    ],
)
def test_what_is_of_no_use_is_told_in_one_sentence(
    options: list[str],
    tmp_path: Path,
    change: list[str],
    problem: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "triplets.jsonl"
    assert main([*options, "--output", str(path), *change]) == 2
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert problem in record.getMessage() and "\n" not in record.getMessage()
    assert not path.exists()
