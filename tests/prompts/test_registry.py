from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from cirlab.benchmarks.coco_facet import Facet
from cirlab.errors import UserError
from cirlab.prompts.registry import NAMED, Registry, read_registry
from cirlab.world.dialogue import QUESTIONS


@pytest.mark.parametrize("name", ["gpt", "human"])
def test_every_facet_of_coco_facet_has_its_question(name: str) -> None:
    registry = read_registry(name)
    assert set(registry.questions) == set(get_args(Facet))
    # The paper's eight and two distractors: ten options, one of them nothing in particular.
    assert len(registry.options) == len(set(registry.options)) == 10
    assert registry.options[0] is None
    assert all(option is None or option.endswith("?") for option in registry.options)


def test_the_worlds_questions_are_the_plainest_of_its_dialogues() -> None:
    registry = read_registry("world")
    assert dict(registry.questions) == {facet: asked[0] for facet, asked in QUESTIONS.items()}
    assert list(registry.questions) == list(QUESTIONS)


def test_published_questions_are_to_the_letter() -> None:
    gpt, human = read_registry("gpt"), read_registry("human")
    assert gpt.question("Visual7W_scene") == "What type of location is depicted in this image?"
    assert gpt.question("COCO_gesture") == "What gesture are the people making in this image?"
    assert human.question("COCO_animal") == "What animals are in this image?"
    assert human.question("COCO_object") == "What objects are in the image?"


def test_options_are_each_named_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "questions: {b: 'what B?', a: 'what A? ', c: 'what B?'}\n"
        "distractors: ['what D?', null, 'what A?']"
    )
    registry = read_registry(str(path))
    assert registry.question("a") == "what A?"
    assert registry.options == ("what D?", None, "what A?", "what B?")


def test_nothing_in_particular_can_always_be_chosen_unless_a_file_says_otherwise(
    tmp_path: Path,
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("questions: {a: 'what A?'}")
    assert read_registry(str(path)).options == (None, "what A?")
    path.write_text("questions: {a: 'what A?'}\ndistractors: []")
    assert read_registry(str(path)).options == ("what A?",)


def test_a_facet_without_a_question_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"'r' have no question for the facet 'b' \(they have a\)"):
        Registry("r", {"a": "what A?"}).question("b")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("questions: [1", "is not valid YAML"),
        ("- a", "holds list; give the keys questions"),
        ("", "holds NoneType; give the keys questions"),
        ("{}", "holds nothing; give the keys questions"),
        ("prompts: {a: b}", "holds prompts; give the keys questions"),
        ("questions: {}", "questions must hold one question or more"),
        ("questions: [what A]", "questions must hold one question or more"),
        ("questions: {1: what A}", "questions must hold one question or more"),
        ("questions: {a: ''}", "the question of 'a' is \"\", but must be words"),
        ("questions: {a: what A}\ndistractors: what D?", "distractors must be a list"),
        ("questions: {a: what A}\ndistractors: ['']", "distractors must be a list"),
        ("questions: {place: 5}", "the question of 'place' is 5, but must be words"),
        ("questions:\n  a: what A\n  a: what B", "gives 'a' a second time in line 3; keep one"),
        ("questions: {a: 'what {text} <image>?'}", "facet 'a': the prompt .* holds <image>"),
        ("questions: {a: b}\ndistractors: ['{text}?']", "distractors: the prompt .* holds {text}"),
    ],
)
def test_a_file_that_is_no_registry_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=problem):
        read_registry(str(path))


def test_a_registry_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="no prompts 'gtp'; give gpt, human, world, or the path"):
        read_registry("gtp")


def test_registries_are_installed_with_the_package() -> None:
    settings = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"cirlab.prompts" = ["*.yaml"]' in settings
    assert all(path.suffix == ".yaml" and path.is_file() for path in NAMED.values())
