from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from cirlab import distributed
from cirlab.chat.llm import Decoding, InstructionLLM
from cirlab.encoders.mllm.scratch import CHAT_TEMPLATE
from cirlab.errors import UserError
from cirlab.prompts import ChosenPrompts, LLMChoice, PromptChooser, Wording, llm_choice
from cirlab.prompts.asking import letter_of
from cirlab.records import Query
from tests.distributed.processes import run_in_processes
from tests.prompts.readers import Reader
from tests.triplets.talkers import write_tiny_chat_model

QUERIES = [
    Query("q0", "show an image in the rain", ("a",)),
    Query("q1", "show an image with a star", ("b",)),
    Query("q2", "show an image in the rain ", ("c",)),
    Query("q3", "show an image at night", ("d",)),
]
ANSWERS = {"rain": "D", "star": "no idea", "night": "C. what time"}
#: Letters: A is nothing in particular, then place, time, weather.
CHOSEN = ["what is the weather?", None, "what is the weather?", "what time is it?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_chat_model(tmp_path_factory.mktemp("chat"), positions=1024)


def chooser_at(folder: Path, llm: object = "reader", **arguments: Any) -> LLMChoice:
    return LLMChoice(str(llm), str(folder / "choices.json"), "world", device="cpu", **arguments)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Stands in for the weights, none of which answer sensibly in a test."""
    reader = Reader(ANSWERS)
    monkeypatch.setattr(llm_choice, "InstructionLLM", lambda name, **settings: reader)
    return reader


def test_each_text_is_asked_about_once(
    reader: Reader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert chooser_at(tmp_path, batch_size=2)(QUERIES[:3]) == CHOSEN[:3]
    assert "reader chose prompts for 2 texts; 1 answers named no option and count as A" in (
        caplog.text
    )
    # Another run asks about what is new, and about nothing once all is known.
    chooser = chooser_at(tmp_path, batch_size=2)
    assert chooser(QUERIES) == CHOSEN == chooser(QUERIES)
    assert reader.asked == [[QUERIES[0].text, QUERIES[1].text], [QUERIES[3].text]]
    assert ChosenPrompts(str(tmp_path / "choices.json"))(QUERIES) == CHOSEN


def test_a_run_that_ends_early_keeps_what_was_answered(reader: Reader, tmp_path: Path) -> None:
    reader.answers = {"rain": "D", "star": "no idea"}
    with pytest.raises(KeyError):
        chooser_at(tmp_path, batch_size=1)(QUERIES)
    reader.answers = {"night": "C"}
    assert chooser_at(tmp_path, batch_size=1)(QUERIES) == CHOSEN


def test_a_real_model_chooses_as_it_answers(folder: Path, tmp_path: Path) -> None:
    chooser = chooser_at(tmp_path, folder, batch_size=2)
    chosen = chooser(QUERIES)
    llm = InstructionLLM(str(folder))
    for query, prompt in zip(QUERIES, chosen, strict=True):
        chat = Wording().chat(query.text.strip(), chooser.options)
        (reply,) = llm.replies([chat], Decoding(max_new_tokens=8), seed=0)
        assert prompt == chooser.options[letter_of(reply.text, chooser.options) or "A"]
    made_by = json.loads((tmp_path / "choices.json").read_text())["chosen_by"]
    assert made_by["weights"] == llm.identity()["weights"]
    assert made_by["llm"] == str(folder) and made_by["max_new_tokens"] == 8


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    path = write_tiny_chat_model(tmp_path / "llm", positions=1024)
    chooser_at(tmp_path, path)(QUERIES[:1])
    write_tiny_chat_model(tmp_path / "llm", positions=1024, seed=1)
    with pytest.raises(UserError, match="were made with weights"):
        chooser_at(tmp_path, path)(QUERIES)


def test_a_template_that_fails_at_system_messages_is_refused(tmp_path: Path) -> None:
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + CHAT_TEMPLATE
    )
    path = write_tiny_chat_model(tmp_path / "llm", refusing, positions=1024)
    with pytest.raises(UserError, match="no place for a system message"):
        chooser_at(tmp_path, path)(QUERIES)
    assert len(chooser_at(tmp_path, path, wording=Wording(system=None))(QUERIES)) == len(QUERIES)


def test_processes_agree_and_one_of_them_asks(folder: Path, tmp_path: Path) -> None:
    first, second = run_in_processes(_choose, tmp_path, str(folder), str(tmp_path))
    assert first == (chooser_at(tmp_path, folder)(QUERIES), True)
    assert second == (first[0], False)


def _choose(rank: int, llm: str, folder: str) -> tuple[list[str | None], bool]:
    # Of their own files, only that of the process that asks is written.
    cache = Path(folder) / "choices.json" if rank == 0 else Path(folder) / "other.json"
    chooser = LLMChoice(llm, str(cache), "world", device="cpu")
    chosen = distributed.from_first(lambda: chooser(QUERIES))
    return chosen, cache.exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"batch_size": 0}, "batch_size of LLMChoice is 0; set it to 1 or more"),
        ({"device": "cud"}, "no device 'cud' here; set prompts.init_args.device to cpu or cuda"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; set it to 1 or more"),
        ({"registry": "wrold"}, "there are no prompts 'wrold'"),
        ({"cache": "choices.jsonl"}, "cache of LLMChoice is 'choices.jsonl'; name a .json file"),
    ],
)
def test_arguments_of_no_use_are_refused_at_once(arguments: dict, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        LLMChoice(**{"llm": "none", "cache": "choices.json", "registry": "world"} | arguments)


def test_a_cache_of_something_else_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "choices.json").write_text("{}")
    with pytest.raises(UserError, match="holds no choices of LLMChoice"):
        chooser_at(tmp_path)


def test_a_query_without_words_is_refused_by_name(reader: Reader, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="query 'q9' has no text by which an LLM"):
        chooser_at(tmp_path)([*QUERIES, Query("q9", " ", ("a",))])
    assert not reader.asked


def test_weights_that_are_not_there_are_refused_by_their_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\(llm\)"):
        chooser_at(tmp_path, write_tiny_chat_model(tmp_path / "m", template=None))(QUERIES)


def test_a_configuration_names_it(tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--chooser", type=PromptChooser)
    arguments = {
        "llm": "zoo:tiny_mllm",
        "cache": str(tmp_path / "choices.json"),
        "wording": {"system": None},
        "four_bit": {"quant_type": "fp4"},
    }
    given = {"class_path": "cirlab.prompts.LLMChoice", "init_args": arguments}
    chooser = parser.instantiate(parser.parse_object({"chooser": given})).chooser
    assert isinstance(chooser, LLMChoice)
    assert chooser.wording == Wording(system=None) and chooser.four_bit is not None
