from __future__ import annotations

from collections.abc import Sequence

import PIL.Image
import pytest
import torch

from cirlab.benchmarks.base import TargetRanks
from cirlab.errors import UserError
from cirlab.records import Caption, DecodedImage, Item, Query
from cirlab.retrieval.index import GalleryIndex, Ranked
from cirlab.retrieval.ranking import SearchResult
from cirlab.retrieval.reranking import blocks, reranked, score_blocks

IMAGES, QUERIES, DEPTH = 40, 25, 7
PIXELS = PIL.Image.new("RGB", (2, 2))
GALLERY = [DecodedImage(id=f"i{n}", pixels=PIXELS) for n in range(IMAGES)]


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def queries(targets: int = 3) -> list[Query]:
    places = [torch.randperm(IMAGES, generator=torch.Generator().manual_seed(q)) for q in range(25)]
    return [
        Query(id=str(q), text="", targets=tuple(f"i{n}" for n in place[: 1 + q % targets].tolist()))
        for q, place in enumerate(places)
    ]


def first_stage(asked: Sequence[Query], depth: int = DEPTH) -> tuple[Ranked, torch.Tensor]:
    index = GalleryIndex([image.id for image in GALLERY], draw(IMAGES, 8, seed=1))
    found = index.rank(draw(len(asked), 8, seed=2), asked, k=depth)
    targets = torch.full((len(asked), 3), -1)
    for row, query in enumerate(asked):
        for column, name in enumerate(query.targets):
            targets[row, column] = int(name[1:])
    return found, targets


@pytest.mark.parametrize("by_item", [True, False])
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_blocks_hold_every_pair_once(by_item: bool, size: int) -> None:
    best = first_stage(queries())[0].best.positions
    best[3, 4:] = -1
    seen = torch.zeros_like(best)
    images: list[int] = []
    for block in blocks(best, by_item=by_item, size=size):
        for (query, item), (row, column) in zip(
            block.pairs.tolist(), block.cells.tolist(), strict=True
        ):
            seen[row, column] += 1
            assert block.queries[query] == row
            assert block.items[item] == best[row, column]
        own = (block.items if by_item else block.queries).tolist()
        assert 0 < len(own) <= size
        images += own
    assert torch.equal(seen, (best >= 0).long())
    # An image that were in two blocks would be encoded twice.
    assert len(images) == len(set(images))


def test_no_pair_is_no_block() -> None:
    assert blocks(torch.full((3, 2), -1), by_item=True) == []


def naive(asked: Sequence[Query], found: Ranked, second: torch.Tensor) -> list[list[int]]:
    """Sort by hand: the second score within the list, the first rank beyond it."""
    rows = []
    for q, query in enumerate(asked):
        places = found.best.positions[q].tolist()
        ranks = []
        for column, name in enumerate(query.targets):
            first = int(found.ranks.targets[q, column])
            if first > DEPTH:
                ranks.append(first)
                continue
            own = second[q, places.index(int(name[1:]))]
            ahead = sum(
                bool(second[q, c] >= own)
                if f"i{p}" not in query.targets
                else bool(second[q, c] > own)
                for c, p in enumerate(places)
            )
            ranks.append(1 + ahead)
        rows.append(ranks)
    return rows


def test_ranks_are_those_of_sorting_by_hand() -> None:
    asked = queries()
    found, targets = first_stage(asked)
    second = draw(QUERIES, DEPTH, seed=3)
    again = reranked(found, targets, second)
    expected = naive(asked, found, second)
    rows = zip(again.ranks.targets.tolist(), asked, strict=True)
    ours = [row[: len(query.targets)] for row, query in rows]
    assert ours == expected
    assert again.ranks.targets.tolist() != found.ranks.targets.tolist()
    order = second.argsort(dim=1, descending=True)
    assert torch.equal(again.best.positions, found.best.positions.gather(1, order))


def test_a_second_stage_that_agrees_changes_nothing() -> None:
    found, targets = first_stage(queries())
    again = reranked(found, targets, found.best.scores)
    assert torch.equal(again.ranks.targets, found.ranks.targets)
    assert torch.equal(again.best.positions, found.best.positions)


def test_a_constant_second_stage_ranks_targets_last_in_the_list() -> None:
    found, targets = first_stage(queries(targets=1))
    again = reranked(found, targets, torch.zeros(QUERIES, DEPTH)).ranks.targets[:, 0]
    listed = found.ranks.targets[:, 0] <= DEPTH
    assert listed.any() and (again[listed] == DEPTH).all()
    assert torch.equal(again[~listed], found.ranks.targets[~listed, 0])


def test_a_tie_at_the_end_of_the_list_is_no_second_chance() -> None:
    """The first stage gives all the same score; its list begins with the target by chance."""
    best = SearchResult(torch.arange(3)[None], torch.ones(1, 3))
    found = Ranked(TargetRanks(torch.tensor([[40]])), best, None)
    again = reranked(found, torch.tensor([[0]]), torch.tensor([[9.0, 0.0, 0.0]]))
    assert again.ranks.targets.tolist() == [[40]]


def test_places_without_an_image_stay_last() -> None:
    best = SearchResult(torch.tensor([[5, 2, -1]]), torch.tensor([[0.9, 0.8, -torch.inf]]))
    found = Ranked(TargetRanks(torch.tensor([[2]])), best, None)
    again = reranked(found, torch.tensor([[2]]), torch.tensor([[-7.0, -3.0, -torch.inf]]))
    assert again.best.positions.tolist() == [[2, 5, -1]]
    assert again.ranks.targets.tolist() == [[1]]


@pytest.mark.parametrize("captions", [False, True])
def test_pairs_are_scored_with_their_records(captions: bool) -> None:
    gallery: list[Item] = list(GALLERY)
    if captions:
        gallery = [Caption(id=image.id, text=image.id) for image in GALLERY]
    asked = queries()
    best = first_stage(asked)[0].best
    table = draw(QUERIES, IMAGES, seed=4)

    def score(
        some: Sequence[Query], items: Sequence[Item], pairs: torch.Tensor, first: torch.Tensor
    ) -> torch.Tensor:
        rows = torch.tensor([int(some[q].id) for q in pairs[:, 0].tolist()])
        columns = torch.tensor([int(items[i].id[1:]) for i in pairs[:, 1].tolist()])
        return table[rows, columns] + first

    filled = torch.zeros(QUERIES, DEPTH)
    for share in (slice(0, None, 2), slice(1, None, 2)):
        for cells, values in score_blocks(score, asked, gallery, best, share):
            filled[cells[:, 0], cells[:, 1]] += values
    assert torch.allclose(filled, table.gather(1, best.positions) + best.scores)


def test_scores_that_are_no_numbers_are_refused() -> None:
    asked = queries()
    best = first_stage(asked)[0].best
    with pytest.raises(UserError, match="second stage gave NaN or infinity for query"):
        list(score_blocks(lambda *_: torch.tensor([torch.nan]), asked, GALLERY, best))
