from __future__ import annotations

import pytest
import torch

from cirlab.errors import UserError
from cirlab.records import Query
from cirlab.retrieval import index as index_module
from cirlab.retrieval.index import TIE_TOLERANCE, GalleryIndex


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


def ids(count: int) -> list[str]:
    return [f"image{i}" for i in range(count)]


def some_queries(
    count: int, pool: int, seed: int, candidates: bool = False, subset: bool = False
) -> list[Query]:
    """Queries with 1 to 4 targets, 0 to 2 exclusions, and perhaps pools of their own."""
    generator = torch.Generator().manual_seed(seed)
    queries = []
    for row in range(count):
        names = [f"image{i}" for i in torch.randperm(pool, generator=generator).tolist()]
        targets, excluded, others = names[: 1 + row % 4], names[4 : 4 + row % 3], names[8:]
        own = tuple(targets + others[: 5 + row % 7] + excluded[:1])
        queries.append(
            Query(
                id=f"q{row}",
                text="",
                targets=tuple(targets),
                exclude=tuple(excluded),
                # Benchmarks may give candidates to some queries only.
                candidates=own if candidates and row % 2 else None,
                subset=tuple([targets[0], *others[:4]]) if subset else None,
            )
        )
    return queries


def naive_ranks(
    scores: torch.Tensor, query: Query, pool: list[str], names: list[str], width: int
) -> list[int]:
    """Sort the pool by brute force: non-targets first among ties, targets by their scores."""
    score = dict(zip(names, scores.double().tolist(), strict=True))
    pool = [name for name in pool if name not in query.exclude]
    others = [name for name in pool if name not in query.targets]
    ranks = []
    for target in query.targets:
        if target not in pool:
            ranks.append(0)
            continue
        ahead = sum(score[name] >= score[target] - TIE_TOLERANCE for name in others)
        better = sum(score[t] > score[target] for t in query.targets if t in pool)
        ranks.append(ahead + better + 1)
    return ranks + [0] * (width - len(ranks))


@pytest.mark.parametrize("memory_mib", [1, 256])
@pytest.mark.parametrize("seed", range(3))
def test_ranks_equal_brute_force(seed: int, memory_mib: int) -> None:
    names = ids(300)
    gallery, vectors = unit(300, 8, seed=seed), unit(40, 8, seed=seed + 100)
    queries = some_queries(40, pool=300, seed=seed, candidates=True, subset=True)
    ranks = GalleryIndex(names, gallery, memory_mib=memory_mib).target_ranks(vectors, queries)
    scores = vectors @ gallery.T
    for row, query in enumerate(queries):
        pool = list(query.candidates or names)
        assert ranks.targets[row].tolist() == naive_ranks(scores[row], query, pool, names, 4)
        assert ranks.subset is not None
        within = naive_ranks(scores[row], query, list(query.subset or ()), names, 4)
        assert ranks.subset[row].tolist() == within


@pytest.mark.parametrize("memory_mib", [0, 256])
def test_a_pool_that_queries_share_is_ranked_as_their_own(memory_mib: int) -> None:
    names = ids(300)
    gallery, vectors = unit(300, 8), unit(12, 8, seed=1)
    pools = [tuple(names[:100]), tuple(names[40:200]), None, tuple(names[5:15])]
    queries = [
        Query(
            id=f"q{row}",
            text="",
            targets=(names[50 + row],) if row % 4 < 3 else (names[9],),
            exclude=(names[80 - row],),
            candidates=pools[row % 4],
        )
        for row in range(12)
    ]
    index = GalleryIndex(names, gallery, memory_mib=memory_mib)
    ranks, best, _ = index.rank(vectors, queries, k=20)
    for row, query in enumerate(queries):
        alone = index.rank(vectors[row : row + 1], [query], k=20)
        assert ranks.targets[row].tolist() == alone.ranks.targets[0].tolist()
        assert best.positions[row].tolist() == alone.best.positions[0].tolist()
        pool = list(query.candidates or names)
        naive = naive_ranks(vectors[row] @ gallery.T, query, pool, names, 1)
        assert ranks.targets[row].tolist() == naive


def test_queries_without_known_answers_are_ranked() -> None:
    names = ids(30)
    queries = [Query(id="q", text="", targets=(), exclude=(names[3],), subset=tuple(names[:5]))]
    ranked = GalleryIndex(names, unit(30, 8)).rank(unit(1, 8, seed=1), queries, k=10)
    scores = unit(30, 8) @ unit(1, 8, seed=1)[0]
    order = [i for i in scores.argsort(descending=True).tolist() if i != 3]
    assert ranked.ranks.targets.shape == (1, 0)
    assert ranked.best.positions[0].tolist() == order[:10]
    assert ranked.best_in_subset is not None
    inside = [i for i in order if i < 5]
    assert ranked.best_in_subset.positions[0].tolist() == [*inside, -1]


def test_blocks_of_one_query_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, vectors = unit(50, 8), unit(20, 8, seed=1)
    queries = some_queries(20, pool=50, seed=0, candidates=True, subset=True)
    index = GalleryIndex(ids(50), gallery)
    whole, best, _ = index.rank(vectors, queries, k=7)
    monkeypatch.setattr(index, "memory_mib", 0)
    pieces, best_pieces, _ = index.rank(vectors, queries, k=7)
    assert torch.equal(whole.targets, pieces.targets)
    assert torch.equal(best.positions, best_pieces.positions)


def test_a_collapsed_encoder_ranks_last() -> None:
    """Equal scores everywhere must give chance at best, never recall 1."""
    same = torch.ones(30, 4)
    queries = [Query(id="q", text="", targets=("image0",), exclude=("image1",))]
    for value in (1.0, 0.0):
        ranks = GalleryIndex(ids(30), same * value).target_ranks(torch.ones(1, 4), queries)
        assert ranks.targets.tolist() == [[29]]


def test_rounding_is_a_tie_but_a_real_difference_is_not() -> None:
    gallery = torch.tensor([[1.0, 0.0], [1.0, 2e-4], [1.0, 3e-3]])
    queries = [Query(id="q", text="", targets=("image0",))]
    query = torch.tensor([[1.0, 0.0]])
    # cos is 1 - 2e-8 for the second, 1 - 4.5e-6 for the third image.
    assert GalleryIndex(ids(3), gallery).target_ranks(query, queries).targets.tolist() == [[2]]


def test_duplicates_of_the_target_come_before_it() -> None:
    gallery = unit(10, 4)
    gallery[7] = gallery[2]
    queries = [Query(id="q", text="", targets=("image2",))]
    index = GalleryIndex(ids(10), gallery)
    assert index.target_ranks(gallery[2:3], queries).targets.tolist() == [[2]]


def test_targets_that_tie_share_no_rank() -> None:
    gallery = unit(10, 4)
    gallery[7] = gallery[2]
    queries = [Query(id="q", text="", targets=("image7", "image2"))]
    ranks = GalleryIndex(ids(10), gallery).target_ranks(gallery[2:3], queries)
    assert sorted(ranks.targets[0].tolist()) == [1, 2]


def test_training_precision_does_not_reach_the_scores() -> None:
    gallery, vectors = unit(3000, 256), unit(500, 256, seed=1)
    queries = [Query(id=str(i), text="", targets=(f"image{i}",)) for i in range(500)]
    index = GalleryIndex(ids(3000), gallery)
    ranks, best, _ = index.rank(vectors, queries, k=5)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            again, best_again, _ = index.rank(vectors, queries, k=5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(ranks.targets, again.targets)
    assert torch.equal(best.scores, best_again.scores)


# ---- the best images ------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 60, 1000])
def test_best_images_equal_a_stable_sort(k: int) -> None:
    names, gallery, vectors = ids(60), unit(60, 8), unit(30, 8, seed=1)
    gallery[40:50] = gallery[10:20]
    queries = some_queries(30, pool=60, seed=2, candidates=True)
    best = GalleryIndex(names, gallery).rank(vectors, queries, k=k).best
    assert best.positions.shape == (30, min(k, 60))
    for row, query in enumerate(queries):
        pool = [i for i in range(60) if names[i] in (query.candidates or names)]
        left = [i for i in pool if names[i] not in query.exclude]
        scores = {i: torch.dot(vectors[row], gallery[i]).item() for i in left}
        listed = best.positions[row][best.positions[row] >= 0].tolist()
        assert len(listed) == len(set(listed)) == min(k, len(left))
        expected = sorted(scores.values(), reverse=True)[: len(listed)]
        assert [scores[i] for i in listed] == pytest.approx(expected, abs=1e-6)
        assert (best.positions[row, len(listed) :] == -1).all()


@pytest.mark.parametrize("k", [1, 5, 40, 350, 999])
def test_equal_scores_are_listed_by_position_even_at_the_cut(k: int) -> None:
    """Ten different images, each a hundred times, shuffled."""
    kinds = torch.randperm(1000, generator=torch.Generator().manual_seed(0)) % 10
    # Scores of a tenth, two tenths ... whatever the order of summation.
    gallery = torch.stack([torch.cos(kinds / 10), torch.sin(kinds / 10)], dim=1)
    query = Query(id="q", text="", targets=("image400",), exclude=("image3", "image8"))
    index = GalleryIndex(ids(1000), gallery)
    ranking = sorted(set(range(1000)) - {3, 8}, key=lambda i: (kinds[i].item(), i))
    direction = torch.tensor([[1.0, 0.0]])
    best = index.rank(direction, [query], k=k).best.positions[0]
    assert best[: len(ranking)].tolist() == ranking[:k]
    found = index.search(direction, k, [query.exclude]).positions[0]
    assert found[: len(ranking)].tolist() == ranking[:k]


def test_excluded_images_leave_their_places_to_others() -> None:
    index, query = GalleryIndex(ids(100), unit(100, 8)), unit(1, 8, seed=1)
    every = index.search(query, 100).positions[0].tolist()
    first = [f"image{i}" for i in every[:7]]
    assert index.search(query, 5, [first]).positions[0].tolist() == every[7:12]


def test_search_equals_the_ranking() -> None:
    gallery, vectors = unit(200, 16), unit(50, 16, seed=1)
    queries = some_queries(50, pool=200, seed=0)
    index = GalleryIndex(ids(200), gallery)
    best = index.rank(vectors, queries, k=10).best
    found = index.search(vectors, 10, [query.exclude for query in queries])
    assert torch.equal(found.positions, best.positions)
    assert torch.allclose(found.scores, best.scores, atol=1e-6)


def test_exclusion_is_by_id_when_the_reference_has_a_twin() -> None:
    gallery = unit(20, 4)
    gallery[3] = gallery[1]
    index = GalleryIndex(ids(20), gallery)
    for reference, twin in (("image1", 3), ("image3", 1)):
        found = index.search(gallery[1:2], 1, [[reference]])
        assert found.positions.tolist() == [[twin]]


def test_more_images_than_there_are_gives_all_and_no_last_one_by_accident() -> None:
    found = GalleryIndex(ids(3), unit(3, 4)).search(unit(2, 4, seed=1), 10, [["image0"], []])
    assert sorted(found.positions[0].tolist()) == [-1, 1, 2]
    assert found.scores[0, -1] == -torch.inf
    assert sorted(found.positions[1].tolist()) == [0, 1, 2]


# ---- approximate indexes --------------------------------------------------------------------


def test_approximate_ranks_equal_exact_ones_when_nothing_is_missed() -> None:
    gallery, vectors = unit(400, 16), unit(30, 16, seed=1)
    queries = some_queries(30, pool=400, seed=0, candidates=True, subset=True)
    exact = GalleryIndex(ids(400), gallery)
    probing_all = GalleryIndex(ids(400), gallery, factory="IVF8,Flat;nprobe=8")
    assert not probing_all.is_exact
    assert probing_all.recall_against_flat(vectors) == 1.0
    ours, best, _ = probing_all.rank(vectors, queries, k=5)
    truth, best_truth, _ = exact.rank(vectors, queries, k=5)
    assert torch.equal(ours.targets, truth.targets)
    assert ours.subset is not None and truth.subset is not None
    assert torch.equal(ours.subset, truth.subset)
    assert torch.equal(best.positions, best_truth.positions)


def test_a_target_that_is_not_found_ranks_past_the_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "APPROXIMATE_DEPTH", 20)
    gallery = unit(400, 16)
    vectors = -gallery[:30]
    queries = [Query(id=str(i), text="", targets=(f"image{i}",)) for i in range(30)]
    index = GalleryIndex(ids(400), gallery, factory="IVF8,Flat")
    assert index.target_ranks(vectors, queries).targets.flatten().tolist() == [401] * 30
    assert index.recall_against_flat(vectors) < 1.0


# ---- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_vectors_that_are_no_numbers_are_refused(bad: float) -> None:
    broken = unit(5, 4)
    broken[3, 1] = bad
    with pytest.raises(UserError, match=r"1 of 5 gallery vectors .* number 3"):
        GalleryIndex(ids(5), broken)
    index, queries = GalleryIndex(ids(5), unit(5, 4)), some_queries(5, pool=40, seed=0)
    queries = [Query(id=q.id, text="", targets=("image0",)) for q in queries]
    with pytest.raises(UserError, match="query vectors"):
        index.target_ranks(broken, queries)
    with pytest.raises(UserError, match="query vectors"):
        index.search(broken, 1)


def test_lengths_that_differ_are_refused() -> None:
    index = GalleryIndex(ids(5), unit(5, 4))
    with pytest.raises(ValueError, match="2 vectors for 1 queries"):
        index.target_ranks(unit(2, 4), [Query(id="q", text="", targets=("image0",))])
    with pytest.raises(ValueError, match="3 ids for 5 vectors"):
        GalleryIndex(ids(3), unit(5, 4))
    with pytest.raises(ValueError, match="at least 1, not 0"):
        index.search(unit(2, 4), 0)


def test_galleries_without_images_or_with_equal_ids_are_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        GalleryIndex([], torch.empty(0, 4))
    with pytest.raises(UserError, match="'b' occurs more than once"):
        GalleryIndex(["a", "b", "b"], unit(3, 4))


@pytest.mark.parametrize("factory", ["Nonsense", "IVF1000,Flat", "IVF2,Flat;speed=3"])
def test_an_index_that_cannot_be_built_is_refused_at_once(factory: str) -> None:
    with pytest.raises(UserError, match=f"cannot build the index '{factory}'.*'Flat' always"):
        GalleryIndex(ids(100), unit(100, 4), factory=factory)


def test_vectors_are_normalised_in_float32() -> None:
    gallery, query = unit(50, 8), unit(1, 8, seed=1)
    scaled = GalleryIndex(ids(50), (gallery * torch.arange(1, 51)[:, None]).half())
    plain = GalleryIndex(ids(50), gallery)
    assert scaled.vectors.dtype == torch.float32
    assert torch.allclose(scaled.vectors, plain.vectors, atol=2e-3)
    found = plain.search(query * 100, 3)
    assert torch.allclose(found.scores, plain.search(query, 3).scores, atol=1e-6)
