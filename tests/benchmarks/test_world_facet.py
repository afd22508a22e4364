from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from cirlab.benchmarks.world_facet import WorldFacet
from cirlab.world.properties import Value, facet_values, has, lacks
from cirlab.world.scene import Scene, Thing
from cirlab.world.vocabulary import PLURALS, POSITIONS, SETTING_PHRASES, dialogue_vocabulary
from tests.benchmarks.world_readers import scenes_of

FACETS = (
    *("place", "time", "weather", "view"),
    *("shape", "number", "size", "texture", "colour", "position"),
)


@pytest.fixture(scope="module")
def benchmark() -> WorldFacet:
    made = WorldFacet(families=30, queries_per_facet=40)
    made.setup()
    return made


@pytest.fixture(scope="module")
def scenes(benchmark: WorldFacet) -> dict[str, Scene]:
    return scenes_of(benchmark)


def fits(facet: str, text: str, scene: Scene) -> bool:
    """Whether the words of a query are true of a scene in any way."""
    asked = text.removeprefix("show an image ")
    if facet in SETTING_PHRASES:
        return asked in SETTING_PHRASES[facet][getattr(scene, facet)]
    asked = asked.removeprefix("with ")
    if facet == "position":
        return POSITIONS.index(asked.removeprefix("one ")) in scene.taken_cells()
    if facet == "number":
        number, noun = asked.split()
        counts = [t.count for t in scene.things if noun in (t.shape, PLURALS[t.shape])]
        return ("one", "two", "three").index(number) + 1 in (*counts, sum(counts))
    word = asked.split()[1]
    return any(word in thing.look for thing in scene.things)


def test_one_of_a_hundred_fits(benchmark: WorldFacet, scenes: dict[str, Scene]) -> None:
    for query in benchmark.queries:
        assert len(set(query.candidates or ())) == len(query.candidates or ()) == 100
        facet = query.tags["facet"]
        fitting = [n for n in query.candidates or () if fits(facet, query.text, scenes[n])]
        assert fitting == list(query.targets), query.text


def test_every_facet_is_asked_for_and_its_values_take_turns(benchmark: WorldFacet) -> None:
    assert Counter(q.tags["facet"] for q in benchmark.queries) == dict.fromkeys(FACETS, 40)
    texts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for query in benchmark.queries:
        assert query.image is None
        texts[query.tags["facet"]][query.text] += 1
    for facet, counts in texts.items():
        assert max(counts.values()) - min(counts.values()) <= 1 or facet == "number"
    assert [len(texts[facet]) for facet in FACETS[:5]] == [4, 3, 4, 3, 8]
    assert [len(texts[facet]) for facet in FACETS[6:]] == [2, 4, 8, 9]
    assert len(texts["number"]) > 15


def test_positives_and_negatives_differ_from_query_to_query(benchmark: WorldFacet) -> None:
    texts = [q.candidates for q in benchmark.queries if q.text == "show an image at night"]
    assert len(texts) > 10 and len(set(texts)) == len(texts)


def test_prompts_are_questions_about_the_facet(benchmark: WorldFacet) -> None:
    prompts = {query.tags["facet"]: query.prompt for query in benchmark.queries}
    assert prompts["weather"] == "what is the weather?"
    assert prompts["number"] == "how many things are there?"
    assert len(set(prompts.values())) == len(FACETS)
    assert all(prompts[query.tags["facet"]] == query.prompt for query in benchmark.queries)
    assert {word for p in prompts.values() if p for word in p.rstrip("?").split()} <= set(
        dialogue_vocabulary()
    )


def test_numbers_that_can_be_read_in_two_ways_are_neither_had_nor_lacked() -> None:
    look = {"shape": "star", "size": "small", "texture": "plain"}
    red, blue = Thing((0, 1), colour="red", **look), Thing((2,), colour="blue", **look)
    scene = Scene((blue, red), "sea", "day", "fog", "level", 0)
    one, two, three = (
        Value("number", name, "") for name in ("one star", "two stars", "three stars")
    )
    assert not any(has(scene, value) or lacks(scene, value) for value in (one, two, three))
    alone = Scene((red,), "sea", "day", "fog", "level", 0)
    assert has(alone, two) and lacks(alone, one) and lacks(alone, three)
    assert lacks(alone, Value("number", "two rings", ""))


def test_texts_are_said_as_people_do() -> None:
    texts = {value.text for values in facet_values().values() for value in values}
    assert {
        "show an image in the rain",
        "show an image seen from below",
        "show an image with a star",
        "show an image with two crosses",
        "show an image with one heart",
        "show an image with an orange one",
        "show an image with a large one",
        "show an image with one at the top left",
    } <= texts
    assert len(texts) == 4 + 3 + 4 + 3 + 8 + 24 + 2 + 4 + 8 + 9


def test_metrics_are_means_over_facets_too(benchmark: WorldFacet) -> None:
    names = [f"recall_at_{k}" for k in (1, 5)]
    assert benchmark.metric_names() == [*(f"macro_{name}" for name in names), *names]
    assert benchmark.protocol().candidates == "own, 100"
