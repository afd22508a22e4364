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

from cirlab.benchmarks.world_dialogue import WorldDialogue
from cirlab.dialogue.__main__ import main
from cirlab.world.dialogue import QUESTIONS
from tests.triplets.talkers import write_tiny_chat_model

WORLD = ["--benchmark", "world", "--families", "1", "--limit", "6", "--rounds", "2"]
COMMON = [*WORLD, "--device", "cpu", "--batch-size", "2"]
LISTED = ["--questioner", "list", "--answerer", "world"]


def dialogues(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def test_the_worlds_own_people_play_what_its_benchmark_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "played.json"
    assert main([*COMMON, *LISTED, "--output", str(path)]) == 0
    assert f"6 dialogues, 12 rounds in {path}" in capsys.readouterr().out
    own = WorldDialogue(families=1, dialogues=6, rounds=2)
    played = WorldDialogue(families=1, dialogues=6, rounds=2, played=str(path))
    own.setup(), played.setup()
    assert [query.targets for query in played.queries] == [query.targets for query in own.queries]
    assert [query.text for query in played.queries[::3]] == [q.text for q in own.queries[::3]]
    first = [each[0] for each in QUESTIONS.values()][:2]
    for each in dialogues(path):
        assert [text.partition("? ")[0] + "?" for text in each["dialog"][1:]] == first
    assert played.protocol().annotations != own.protocol().annotations


def test_a_multimodal_llm_answers_and_its_answers_choose_the_questions(tmp_path: Path) -> None:
    path = tmp_path / "played.json"
    people = ["--questioner", "information_gain", "--answerer", "mllm"]
    people += ["--answer-model", "zoo:tiny_mllm", "--retriever", "zoo:tiny_clip", "--top", "3"]
    registry = tmp_path / "own.yaml"
    registry.write_text("questions:\n  a: what time is it?\n  b: what is the view?\n")
    options = [*COMMON, *people, "--registry", str(registry), "--output", str(path)]
    assert main(options) == 0
    asked = [[text.partition("? ")[0] for text in each["dialog"][1:]] for each in dialogues(path)]
    assert {frozenset(each) for each in asked} == {
        frozenset(["what time is it", "what is the view"])
    }
    settings = json.loads(path.with_suffix(".settings.json").read_text())
    assert settings["answerer"]["name"] == "zoo:tiny_mllm"
    assert settings["retriever"]["name"] == "zoo:tiny_clip"
    assert settings["questioner"]["answerer"] == settings["answerer"]


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An LLM that talks nonsense, and the world that answers the registry's questions."""
    folder = write_tiny_chat_model(tmp_path_factory.mktemp("llm"), positions=2048)
    return ["--questioner", "llm", "--llm", str(folder), "--answerer", "world", "--tries", "1"]


def test_nonsense_is_counted_and_replaced_and_a_killed_command_goes_on(
    nonsense: list[str], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole.json", tmp_path / "killed.json"
    options = [*COMMON, *nonsense]
    assert main([*options, "--output", str(whole)]) == 0
    counts = json.loads(whole.with_suffix(".counts.json").read_text())
    assert counts["replaced"] == counts["rounds"] == 12 and sum(counts["refused"].values()) == 24
    command = [sys.executable, "-m", "cirlab.dialogue", *options, "--output", str(killed)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    played = killed.with_suffix(".played.jsonl")
    while process.poll() is None and not (played.exists() and played.stat().st_size):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    begun = played.read_bytes()
    assert 0 < len(begun) < len(whole.with_suffix(".played.jsonl").read_bytes())
    assert not killed.exists()
    # As if the kill had come while a line was written.
    played.write_bytes(begun[:-7])
    assert main([*options, "--output", str(killed)]) == 0
    for suffix in (".json", ".played.jsonl", ".counts.json"):
        assert killed.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (["--questioner", "llm"], "--questioner llm needs an instruction LLM; name it with --llm"),
        (["--answerer", "blip"], "--answerer blip needs a model; name it with --answer-model"),
        (["--questioner", "information_gain"], "needs what ranks the gallery; name it with --ret"),
        (["--imagine", "mllm"], "--imagine mllm needs a model; name it with --imagine-model"),
        (["--benchmark", "chatir"], "--benchmark chatir needs a data folder; name it with --root"),
        (
            ["--questioner", "candidates", "--llm", "a", "--retriever", "b", "--answerer", "human"],
            "is too much for a person; set --imagine to world, mllm or blip",
        ),
        (["--registry", "none"], "there are no questions 'none'"),
        (["--device", "abacus"], "there is no device 'abacus' here"),
        (["--rounds", "0"], "rounds is 0"),
        (["--top", "0"], "--top is 0"),
        (["--limit", "0"], "dialogues"),
        (["--questioner", "llm", "--llm", "zoo:none"], "the zoo holds no model 'zoo:none'"),
        (["--answerer", "mllm", "--answer-model", "zoo:none"], "the zoo holds no model 'zoo:none'"),
    ],
)
def test_what_is_of_no_use_is_told_in_one_sentence(
    tmp_path: Path, change: list[str], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "played.json"
    assert main([*COMMON, *LISTED, "--output", str(path), *change]) == 2
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert problem in record.getMessage() and "\n" not in record.getMessage()
    assert not list(tmp_path.iterdir())


def test_the_output_is_looked_at_before_models_are_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "played.json"
    path.write_text("dear diary")
    change = ["--questioner", "llm", "--llm", "zoo:none"]
    assert main([*COMMON, *LISTED, "--output", str(path), *change]) == 2
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert "is there, but not played.settings.json" in record.getMessage()
