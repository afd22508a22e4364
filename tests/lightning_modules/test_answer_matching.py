"""Answer, then match: what is asked, how answers are ranked, and what says nothing ranks last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from callbacks import RetrievalEvaluation
from cirlab.benchmarks import WorldFacet, WorldTextToImage
from cirlab.benchmarks.base import Benchmark
from cirlab.cli import main
from cirlab.command.configuration import EXPERIMENTS
from cirlab.encoders.adapters import Lora
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.encoders.text_matcher import TextMatcherSettings
from cirlab.errors import UserError
from cirlab.prompts import FixedPrompt, NoPrompt
from cirlab.records import Query
from datamodules import WorldData
from lightning_modules.answer_matching import AnswerThenMatch

WEATHER, PLACE = "what is the weather?", "what is the place?"
INSTRUCTED = "Instruct: Find the image that matches the query.\nQuery: Text: {text}"
NEGATIVES = 9


def settings(**options: Any) -> MLLMSettings:
    return MLLMSettings("zoo:tiny_mllm", **{"frozen": True, "group_size": 160} | options)


def method(**options: Any) -> AnswerThenMatch:
    matcher = TextMatcherSettings("zoo:tiny_llm", query=INSTRUCTED, max_length=128)
    given: dict[str, Any] = {"llm": settings(), "matcher": matcher, "ask": "<image>{text}"}
    module = AnswerThenMatch(**given | options)
    module.configure_model()
    return module


def facets() -> WorldFacet:
    return WorldFacet(families=8, queries_per_facet=3, negatives=NEGATIVES)


def evaluate(
    module: AnswerThenMatch, folder: Path, benchmark: Benchmark | None = None, **options: Any
) -> dict[str, Any]:
    """Results of one benchmark; `options` are the trainer's."""
    retrieval = RetrievalEvaluation()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[retrieval],
        **options,
    )
    data = WorldData(
        records="pairs",
        samples=8,
        batch_size=4,
        eval_batch_size=160,
        benchmarks=[benchmark or facets()],
    )
    trainer.validate(module, data, verbose=False)
    (results,) = retrieval.results.values()
    return results


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def always(module: AnswerThenMatch, token: int) -> AnswerThenMatch:
    """The same with a model that says one word, whatever it sees."""
    speaker: Any = module.llm.speaker
    head = torch.nn.Linear(module.llm.width, speaker.lm_head.out_features).requires_grad_(False)
    head.weight.zero_()
    head.bias.zero_()[token] = 1
    speaker.lm_head = head
    return module


# ---- ranking --------------------------------------------------------------------------------


def test_images_whose_answers_say_it_are_found_and_only_needed_ones_are_asked(
    tmp_path: Path,
) -> None:
    module, benchmark = method(), facets()
    results = evaluate(module, tmp_path, benchmark)
    by_facet = results["breakdown"]["facet"]
    for facet in ("place", "time", "weather"):
        assert by_facet[facet]["recall_at_1"] == 1.0
    said = {(line["image"], line["question"]): line["answer"] for line in answers(tmp_path)}
    needed = {(c, query.prompt) for query in benchmark.queries for c in query.candidates}
    assert said.keys() == needed and len(answers(tmp_path)) == len(needed)
    assert len(needed) < 10 * len(benchmark.gallery) / 2
    images = {image.id: image.scene for image in benchmark.gallery}
    weathers = {(images[i].weather, text) for (i, asked), text in said.items() if asked == WEATHER}
    assert len({weather for weather, _ in weathers}) > 1
    assert all(("fog" in text) == (weather == "fog") for weather, text in weathers)


def test_a_model_that_always_says_the_same_finds_nothing(tmp_path: Path) -> None:
    module = method(max_new_tokens=2)
    word = module.llm.processor.tokenizer("night", add_special_tokens=False)["input_ids"][0]
    results = evaluate(always(module, word), tmp_path)
    (answer,) = {line["answer"] for line in answers(tmp_path)}
    assert len(answer) > 1
    assert all(line["cut"] for line in answers(tmp_path))
    assert results["metrics"]["recall_at_1"] == results["metrics"]["recall_at_5"] == 0


def test_a_model_that_says_nothing_finds_nothing_and_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = method()
    end = silent.llm.processor.tokenizer.eos_token_id
    results = evaluate(always(silent, end), tmp_path)
    assert {line["answer"] for line in answers(tmp_path)} == {""}
    assert results["metrics"]["recall_at_1"] == results["metrics"]["recall_at_5"] == 0
    (told,) = [record for record in caplog.records if "answers are empty" in record.getMessage()]
    count = len(answers(tmp_path))
    assert told.getMessage().startswith(f"{count} of {count} answers are empty; ")


@torch.no_grad()
def test_what_was_not_asked_has_no_vector_and_a_batch_changes_none() -> None:
    module, benchmark = method(), facets()
    benchmark.setup()
    pictures = benchmark.gallery[:5]
    needed = torch.tensor([[True] * 5, [False, True, False, True, False]])
    found = module.encode_views(module.image_collator()(pictures), [None, WEATHER], needed)
    torch.testing.assert_close(found.norm(dim=-1), needed.float())
    alone = [module.image_collator()([picture]) for picture in pictures]
    general = torch.cat([module.encode_images(inputs) for inputs in alone])
    asked = torch.cat([module.encode_images(inputs, WEATHER) for inputs in alone])
    assert torch.equal(found[0], general)
    assert torch.equal(found[1], asked * needed[1][:, None])


# ---- questions ------------------------------------------------------------------------------


def test_queries_without_a_question_search_descriptions(tmp_path: Path) -> None:
    benchmark = WorldTextToImage(scenes=40, captions="full")
    results = evaluate(method(), tmp_path, benchmark)
    assert {line["question"] for line in answers(tmp_path)} == {"Describe this image in detail."}
    assert len(answers(tmp_path)) == 40
    assert results["metrics"]["recall_at_1"] > 0.8
    assert results["protocol"]["views"] == "none"


def test_each_query_has_the_choosers_question() -> None:
    queries = [Query("a", "in the fog", ("1",), prompt=WEATHER), Query("b", "on a beach", ("1",))]
    assert method().prompts_for(queries) == [WEATHER, None]
    assert method(prompts=FixedPrompt(PLACE)).prompts_for(queries) == [PLACE, PLACE]
    assert method(prompts=NoPrompt()).prompts_for(queries) == [None, None]


@torch.no_grad()
def test_answers_about_images_that_could_not_be_read_are_not_written(tmp_path: Path) -> None:
    module, benchmark = method(), facets()
    benchmark.setup()
    inputs = module.image_collator()(benchmark.gallery[:2])
    batch = {"kind": "gallery", "source": "world", "inputs": inputs}
    module.validation_step(
        {**batch, "index": torch.tensor([5, 6]), "valid": torch.tensor([False, True])}, 0
    )
    module._sheet.write(tmp_path, 128)
    assert [line["image"] for line in answers(tmp_path)] == [benchmark.gallery[1].id]


# ---- nothing is trained ---------------------------------------------------------------------

SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    '--data.init_args.benchmarks=[{"class_path": "cirlab.benchmarks.WorldFacet", "init_args": '
    '{"families": 8, "queries_per_facet": 2, "negatives": 9}}]',
    "--data.init_args.num_workers=0",
    '--trainer.logger=[{"class_path": "callbacks.CsvLog", "init_args": {"save_dir": "runs"}}]',
    "--contact_sheet=null",
]


def run(subcommand: str, *options: str) -> int:
    return main([subcommand, "-c", str(EXPERIMENTS / "promptable" / "answers.yaml"), *options])


def test_it_is_evaluated_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("validate", *SMALL) == 0
    (record,) = tmp_path.rglob("run.json")
    fields = json.loads(record.read_text())
    assert (fields["weights"], fields["trained_parameters"]) == ("training-free", 0)
    assert len(answers(record.parent)) > 100


@pytest.mark.parametrize(
    ("subcommand", "sentence"),
    [
        ("fit", "error: AnswerThenMatch is training-free, so fit has nothing to do; run validate"),
        ("export", "error: AnswerThenMatch has learned nothing that could be exported; load zoo:"),
    ],
)
def test_what_needs_training_is_refused(
    subcommand: str,
    sentence: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(subcommand, *SMALL) == 2
    assert caplog.records[-1].getMessage().startswith(sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"llm": settings(frozen=False)}, r"set llm\.frozen to true, and llm\.lora"),
        ({"llm": settings(lora=Lora(rank=2, alpha=4))}, r"set llm\.frozen to true, and llm\.lora"),
        ({"llm": settings(projection=8)}, r"and llm\.lora and llm\.projection to null"),
        ({"llm": settings(tune_connector=True)}, r"tune_connector is true, but .* set it to false"),
        ({"ask": "<image> what is it?"}, r"ask is .*; it must hold {text} once"),
        ({"ask": "{text}<image>"}, r"has {text} before <image>"),
        ({"describe": "  "}, r"describe is empty; write what images are asked"),
        ({"max_new_tokens": 0}, r"max_new_tokens is 0; set it to 1 or more"),
        ({"llm": settings(pooling="mean")}, r"llm\.pooling is mean"),
    ],
)
def test_settings_that_are_of_no_use(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        method(**options)


def test_a_question_too_long_is_refused_before_pictures_are_seen(tmp_path: Path) -> None:
    module = method(prompts=FixedPrompt("is there a red circle? " * 400))
    with pytest.raises(UserError, match=r"chosen by model\.init_args\.prompts \(FixedPrompt\) or"):
        evaluate(module, tmp_path)
    assert not (tmp_path / "answers.jsonl").exists()
