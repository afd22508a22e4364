from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cirlab.benchmarks.world_dialogue import WorldDialogue
from cirlab.dialogue.retriever import DualMethod, GalleryRetriever
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.errors import UserError
from cirlab.retrieval.evaluation import Encoded, Gallery, search


@pytest.fixture(scope="module")
def benchmark() -> WorldDialogue:
    benchmark = WorldDialogue(families=2, dialogues=10, rounds=3)
    benchmark.setup()
    return benchmark


@pytest.fixture(scope="module")
def method() -> DualMethod:
    return DualMethod(load_dual_encoder("zoo:tiny_clip"))


def test_it_ranks_as_an_evaluation_does(benchmark: WorldDialogue, method: DualMethod) -> None:
    retriever = GalleryRetriever(method, benchmark.gallery, batch_size=7)
    ranked = retriever.rank([query.rounds for query in benchmark.queries], k=10)
    read, gallery = method.query_collator(), benchmark.gallery
    vectors = method.encode_queries(read(benchmark.queries)).detach()
    images = method.encode_images(method.image_collator()(gallery)).detach()
    there = [images.new_ones(len(each)).bool() for each in (gallery, benchmark.queries)]
    indexed = Gallery(gallery, Encoded({"gallery": images}, there[0]))
    found = search(benchmark, indexed, Encoded({"query": vectors}, there[1]))
    best = found.ranked.best.positions.tolist()
    assert ranked == [[gallery[place].id for place in row] for row in best]
    assert retriever.rank([], k=3) == []
    assert len(retriever.rank([("a red circle",)], k=10**6)[0]) == len(gallery)


def test_separator_and_weights_are_part_of_what_it_is(
    benchmark: WorldDialogue, method: DualMethod
) -> None:
    few = benchmark.gallery[:4]
    comma = GalleryRetriever(method, few).identity()
    assert comma == {
        "kind": "DualMethod",
        "weights": GalleryRetriever(method, few, separator=" ").identity()["weights"],
        "separator": ", ",
    }
    assert GalleryRetriever(method, few, identity={"kind": "a", "name": "b"}).identity() == (
        comma | {"kind": "a", "name": "b"}
    )


def test_an_empty_gallery_is_refused(method: DualMethod) -> None:
    with pytest.raises(UserError, match="the gallery is empty"):
        GalleryRetriever(method, [])
    with pytest.raises(UserError, match="batch_size is 0"):
        GalleryRetriever(method, [], batch_size=0)


def test_a_target_is_found_where_an_evaluation_finds_it(
    benchmark: WorldDialogue, method: DualMethod
) -> None:
    """By vectors that are known already; only queries are encoded, in the given arithmetic."""
    whole = GalleryRetriever(method, benchmark.gallery)
    entered: list[int] = []

    @contextmanager
    def arithmetic() -> Iterator[None]:
        entered.append(len(entered))
        yield

    known = GalleryRetriever(
        method, benchmark.gallery, vectors=whole.index.vectors, arithmetic=arithmetic
    )
    assert not entered
    query = benchmark.queries[2]
    order = whole.rank([query.rounds], k=len(benchmark.gallery))[0]
    for place in (0, 5, len(order) - 1):
        best, rank = known.find(query.rounds, 7, order[place])
        assert best == order[:7]
        # Twins of one picture have one score, and count against each other.
        assert place + 1 <= rank <= place + 3
    assert len(entered) == 3
