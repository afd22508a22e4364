from __future__ import annotations

import pytest
import torch

from cirlab.errors import UserError
from cirlab.retrieval.index import GalleryIndex
from cirlab.retrieval.viewed_index import ViewedIndex
from tests.retrieval.test_index import ids, some_queries, unit

POOL, ASKED, VIEWS = 60, 25, 4


def views(factory: str = "Flat") -> list[GalleryIndex]:
    return [GalleryIndex(ids(POOL), unit(POOL, 8, seed=9 + v), factory) for v in range(VIEWS)]


#: View 2 has no queries.
VIEW = torch.tensor([(0, 1, 3)[q % 3] for q in range(ASKED)])


@pytest.mark.parametrize("candidates", [False, True])
@pytest.mark.parametrize("subset", [False, True])
def test_every_query_is_ranked_as_it_would_be_alone(candidates: bool, subset: bool) -> None:
    indexes, vectors = views(), unit(ASKED, 8, seed=1)
    queries = some_queries(ASKED, POOL, seed=2, candidates=candidates, subset=subset)
    found = ViewedIndex(indexes).rank(vectors, queries, VIEW, k=7)
    for row, query in enumerate(queries):
        alone = indexes[VIEW[row]].rank(vectors[row : row + 1], [query], k=7)
        width = len(query.targets)
        assert torch.equal(found.ranks.targets[row, :width], alone.ranks.targets[0])
        assert not found.ranks.targets[row, width:].any()
        assert torch.equal(found.best.positions[row], alone.best.positions[0])
        torch.testing.assert_close(found.best.scores[row], alone.best.scores[0])
        assert (found.ranks.subset is None) == (found.best_in_subset is None) == (not subset)
        if found.ranks.subset is not None and found.best_in_subset is not None:
            assert alone.ranks.subset is not None and alone.best_in_subset is not None
            assert torch.equal(found.ranks.subset[row, :width], alone.ranks.subset[0])
            positions = alone.best_in_subset.positions[0]
            assert torch.equal(found.best_in_subset.positions[row], positions)


def test_some_queries_may_have_no_subset_only_if_none_has() -> None:
    """Also where those that have one are all in one view."""
    queries = some_queries(2, POOL, seed=2, subset=True)[:1] + some_queries(2, POOL, seed=3)[1:]
    with pytest.raises(UserError, match="'q1' has no subset while others"):
        ViewedIndex(views()).rank(unit(2, 8), queries, torch.tensor([0, 1]), k=3)


def test_nan_is_told_by_the_number_of_the_query() -> None:
    vectors = unit(ASKED, 8)
    vectors[13] = torch.nan
    with pytest.raises(UserError, match=r"1 of 25 query vectors .* \(the first is number 13\)"):
        ViewedIndex(views()).rank(vectors, some_queries(ASKED, POOL, seed=2), VIEW, k=3)


def test_the_recall_of_approximate_views_is_that_of_their_queries() -> None:
    exact, poor = views(), views("IVF16,Flat;nprobe=1")
    vectors, index = unit(ASKED, 8, seed=1), ViewedIndex([exact[0], poor[1], poor[2], poor[3]])
    shares = [poor[v].recall_against_flat(vectors[VIEW == v], k=5) for v in (1, 3)]
    counts = [int((VIEW == v).sum()) for v in (0, 1, 3)]
    assert max(shares) < 1
    expected = (counts[0] + counts[1] * shares[0] + counts[2] * shares[1]) / ASKED
    assert index.recall_against_flat(vectors, VIEW, k=5) == pytest.approx(expected)
