from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cirlab.benchmarks import WorldFacet
from cirlab.benchmarks.base import Benchmark, QueryKind, TargetRanks
from cirlab.errors import UserError
from cirlab.records import Caption, FileImage, Item, Query
from cirlab.retrieval.evaluation import Encoded, Evaluation, Gallery, evaluate
from cirlab.retrieval.views import plan_views, view_name

IMAGES = [FileImage(f"i{n}", Path("nowhere.jpg")) for n in range(6)]


class Asked(Benchmark):
    """Some queries over six images."""

    kind: QueryKind = "text"

    def __init__(
        self, name: str, *queries: Query, shelf: str = "shelf", gallery: Sequence[Item] = IMAGES
    ) -> None:
        self.name, self.queries, self.gallery, self.shelf = name, queries, gallery, shelf

    @property
    def gallery_id(self) -> str:
        return self.shelf

    def setup(self) -> None:
        pass

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        return {}


def query(prompt: str | None, candidates: str = "", subset: str = "") -> Query:
    """Candidates and subset by their numbers, e.g. "024"."""
    pool, near = (tuple(f"i{n}" for n in text) or None for text in (candidates, subset))
    return Query("q", "", targets=(), prompt=prompt, candidates=pool, subset=near)


def own_prompts(queries: Sequence[Query]) -> list[str | None]:
    return [query.prompt for query in queries]


def needed_by_prompt(*benchmarks: Asked) -> dict[str | None, str]:
    views = plan_views(benchmarks, own_prompts)["shelf"]
    rows = [row.nonzero().flatten().tolist() for row in views.needed]
    return {p: "".join(map(str, row)) for p, row in zip(views.prompts, rows, strict=True)}


# ---- the plan -------------------------------------------------------------------------------


def test_prompts_stand_in_the_order_of_the_queries_behind_none() -> None:
    first = Asked("first", query("b"), query("a"), query(None), query("b"))
    second = Asked("second", query("c"), query("a"))
    views = plan_views([first, second], own_prompts)["shelf"]
    assert views.prompts == (None, "b", "a", "c")
    assert views.view["first"].tolist() == [1, 2, 0, 1]
    assert views.view["second"].tolist() == [3, 2]
    assert views.prompted
    assert plan_views([second], own_prompts)["shelf"].prompts == ("c", "a")


def test_needed_is_what_a_query_of_the_view_can_have_ranked() -> None:
    found = needed_by_prompt(
        Asked("first", query("a", "02"), query("b", "13", subset="135"), query("a", "24")),
        Asked("second", query(None), query("b", "0")),
    )
    assert found == {None: "012345", "a": "024", "b": "0135"}


def test_equal_candidates_are_marked_for_each_of_their_views() -> None:
    one = query("a", "02")
    other = Query("q", "", targets=(), prompt="b", candidates=one.candidates)
    assert needed_by_prompt(Asked("x", one, other, one)) == {"a": "02", "b": "02"}


def test_without_prompts_there_is_one_view() -> None:
    views = plan_views([Asked("x", query(None, "02"))], own_prompts)["shelf"]
    assert views.prompts == (None,) and not views.prompted


def test_galleries_have_views_of_their_own() -> None:
    plan = plan_views(
        [Asked("x", query("a")), Asked("y", query("b"), shelf="rack")], prompts_for=own_prompts
    )
    assert {name: views.prompts for name, views in plan.items()} == {
        "shelf": ("a",),
        "rack": ("b",),
    }


def test_captions_are_not_looked_at() -> None:
    captions = [Caption(f"i{n}", "words") for n in range(6)]
    plan = plan_views([Asked("x", query("a"), gallery=captions)], own_prompts)
    assert plan["shelf"].prompts == (None,)


def test_every_query_must_be_answered_for() -> None:
    with pytest.raises(RuntimeError, match="gave 1 prompts for the 2 queries of x"):
        plan_views([Asked("x", query("a"), query("b"))], lambda queries: ["a"])


def test_the_first_view_has_the_name_of_the_only_one() -> None:
    assert [view_name(place) for place in range(3)] == ["gallery", "view_1", "view_2"]


# ---- the protocol ---------------------------------------------------------------------------


def told(*prompts: str | None) -> str:
    benchmark = Asked("x", *(query(prompt) for prompt in prompts))
    other = Asked("other", query("of another benchmark"))
    return plan_views([other, benchmark], own_prompts)["shelf"].protocol("x")


def test_the_protocol_counts_prompts_and_tells_who_has_which() -> None:
    assert told(None, None) == "none"
    assert told("a", "a").startswith("1 prompt, ")
    assert told("a", "b").startswith("2 prompts, ")
    assert told("a", None, "b").startswith("2 prompts and none, ")
    different = [("a", "b"), ("b", "a"), ("a", "c"), ("a", "b", "b"), ("a", None, "b")]
    assert len({told(*prompts).split(", ")[1] for prompts in different}) == len(different)
    # Kept in results.json, so it must not change between runs.
    assert told("a", "b") == "2 prompts, d26dae360fbeede3"


# ---- what is ranked -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facets() -> WorldFacet:
    made = WorldFacet(families=10, queries_per_facet=6, negatives=20)
    made.setup()
    return made


def looked_at(benchmark: Benchmark, vector: torch.Tensor) -> Evaluation:
    """By an encoder that gives every image and query this vector (D,), in every view."""
    views = plan_views([benchmark], own_prompts)[benchmark.gallery_id]
    vectors = {
        view_name(place): vector * needed[:, None] for place, needed in enumerate(views.needed)
    }
    everything = torch.ones(len(benchmark.gallery), dtype=torch.bool)
    gallery = Gallery(benchmark.gallery, Encoded(vectors, everything), views=views)
    queries = vector.expand(len(benchmark.queries), -1)
    return evaluate(benchmark, gallery, Encoded({"query": queries}, everything[: len(queries)]))


def test_a_constant_encoder_is_never_above_chance(facets: WorldFacet) -> None:
    """Images that are not looked at for a prompt are no easy negatives of its queries."""
    found = looked_at(facets, torch.ones(4))
    assert found.results["protocol"]["views"].startswith("10 prompts, ")
    assert found.ranking.ranks.tolist() == [21] * len(facets.queries)
    assert found.results["metrics"]["recall_at_1"] == found.results["metrics"]["recall_at_5"] == 0


def test_nan_is_refused(facets: WorldFacet) -> None:
    with pytest.raises(UserError, match="gallery vectors hold NaN"):
        looked_at(facets, torch.full((4,), torch.nan))
