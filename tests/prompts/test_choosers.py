from __future__ import annotations

import dataclasses

import pytest
from jsonargparse import ArgumentParser

from cirlab.benchmarks import WorldFacet
from cirlab.errors import UserError
from cirlab.prompts import FixedPrompt, NoPrompt, OwnPrompt, PromptByFacet, PromptChooser
from cirlab.records import Query

QUERIES = [
    Query("q0", "show an image in the rain", ("a",), prompt="own?", tags={"facet": "weather"}),
    Query("q1", "show an image with a star", ("b",), tags={"facet": "shape"}),
]


def test_fixed_rules() -> None:
    assert NoPrompt()(QUERIES) == [None, None]
    assert FixedPrompt(" what is it?\n")(QUERIES) == ["what is it?", "what is it?"]
    assert OwnPrompt()(QUERIES) == ["own?", None]
    assert PromptByFacet("world")(QUERIES) == ["what is the weather?", "what shapes are there?"]
    assert all(rule([]) == [] for rule in (NoPrompt(), OwnPrompt(), PromptByFacet("world")))


def test_the_worlds_own_prompts_are_those_of_its_registry() -> None:
    benchmark = WorldFacet(families=4, queries_per_facet=2, negatives=3)
    benchmark.setup()
    assert OwnPrompt()(benchmark.queries) == PromptByFacet("world")(benchmark.queries)
    assert len(set(OwnPrompt()(benchmark.queries))) == 10


def test_a_facet_that_the_registry_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="'gpt' have no question for the facet 'weather'"):
        PromptByFacet("gpt")(QUERIES)


def test_a_query_without_a_facet_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="query 'q1' is tagged with no facet"):
        PromptByFacet("world")([QUERIES[0], dataclasses.replace(QUERIES[1], tags={})])


def test_an_empty_prompt_for_all_queries_is_refused() -> None:
    with pytest.raises(UserError, match="prompt for all queries is empty"):
        FixedPrompt(" ")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("NoPrompt", {}),
        ("OwnPrompt", {}),
        ("FixedPrompt", {"prompt": "what?"}),
        ("PromptByFacet", {"registry": "human"}),
    ],
)
def test_a_configuration_names_them(name: str, arguments: dict[str, str]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--chooser", type=PromptChooser)
    given = {"class_path": f"cirlab.prompts.{name}", "init_args": arguments}
    chooser = parser.instantiate(parser.parse_object({"chooser": given})).chooser
    assert type(chooser).__name__ == name


@pytest.mark.parametrize("mark", ["<image>", "{text}"])
def test_a_question_is_no_template(mark: str) -> None:
    with pytest.raises(UserError, match=f"FixedPrompt: the prompt .* holds {mark}, which belongs"):
        FixedPrompt(f"what {mark}?")
    asked = dataclasses.replace(QUERIES[0], prompt=f"what {mark}?")
    with pytest.raises(UserError, match=f"query 'q0': the prompt .* holds {mark}"):
        OwnPrompt()([asked])
