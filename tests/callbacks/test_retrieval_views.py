"""Methods with prompts: every query is ranked in its own view of the gallery."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from callbacks.retrieval import RetrievalEvaluation
from cirlab.benchmarks.base import TargetRanks
from cirlab.errors import UserError
from cirlab.records import Caption, Query
from cirlab.retrieval.index import GalleryIndex
from lightning_modules.base import RetrievalModule
from tests.callbacks.looking import PROMPTS, LookingModule, tables
from tests.callbacks.lookup import LookupBenchmark, LookupData, quiet_trainer, vectors
from tests.callbacks.test_retrieval import TwoWordings, validate


class OwnCandidates(LookupBenchmark):
    """Each query ranks its targets and images 0 to 3, and its look-alikes in addition."""

    def setup(self) -> None:
        super().setup()
        self.queries = [self._with_candidates(query) for query in self.queries]

    def _with_candidates(self, query: Query) -> Query:
        own = dict.fromkeys((*query.targets, *(f"image{i}" for i in range(4))))
        return dataclasses.replace(query, candidates=tuple(own))


def one_by_one(benchmark: LookupBenchmark, asked: torch.Tensor) -> dict[str, float]:
    """Metrics by ranking each query (Q, D) alone, among what images look like for its prompt."""
    benchmark.setup()
    names, seen = [image.id for image in benchmark.gallery], tables()
    ranks = []
    for number, query in enumerate(benchmark.queries):
        prompt = PROMPTS[number % len(PROMPTS)]
        index = GalleryIndex(names, seen[prompt][: len(names)])
        ranks.append(index.target_ranks(asked[number : number + 1], [query]))
    subsets = [found.subset for found in ranks if found.subset is not None]
    joined = TargetRanks(torch.cat([r.targets for r in ranks]), subset=torch.cat(subsets))
    return benchmark.score(joined, benchmark.queries)


@pytest.mark.parametrize("kind", [LookupBenchmark, OwnCandidates])
def test_every_query_is_ranked_in_its_own_view(kind: type[LookupBenchmark]) -> None:
    module = LookingModule()
    callback, logged = validate(kind(), module=module)
    results = callback.results["lookup"]
    assert results["metrics"] == one_by_one(kind(), module.rows["query"])
    for name in ("image_only", "text_only"):
        assert results["baselines"][name] == one_by_one(kind(), module.rows[name])
    general, _ = validate(kind(), module=LookingModule(prompts=[None]))
    assert results["metrics"] != general.results["lookup"]["metrics"]
    assert logged["val/lookup/mean_rank"] == pytest.approx(results["metrics"]["mean_rank"])


def test_images_are_looked_at_only_for_what_ranks_them() -> None:
    module = LookingModule()
    validate(OwnCandidates(), module=module)
    assert {prompts for prompts, _ in module.looked} == {(None, "which colour?", "which place?")}
    needed = torch.cat([rows for _, rows in module.looked], dim=1)
    assert needed.shape == (3, 23)
    benchmark = OwnCandidates()
    benchmark.setup()
    for row, prompt in enumerate((None, "which colour?", "which place?")):
        own = [q for n, q in enumerate(benchmark.queries) if PROMPTS[n % 3] == prompt]
        ranked = {item for q in own for item in (*(q.candidates or ()), *(q.subset or ()))}
        assert {f"image{n}" for n in needed[row].nonzero().flatten().tolist()} == ranked
    assert not needed.all()


OF_ALL_KINDS: list[tuple[LookupBenchmark, dict[str, Any]]] = [
    (LookupBenchmark(), {}),
    (OwnCandidates(), {}),
    (LookupBenchmark(rerank_depth=6), {}),
    (LookupBenchmark(broken=[11, 20]), {"on_error": "skip"}),
    (OwnCandidates(broken=[2, 11]), {"on_error": "skip"}),
    (TwoWordings(), {}),
]


@pytest.mark.parametrize(("benchmark", "options"), OF_ALL_KINDS)
@pytest.mark.parametrize("own_space", [False, True])
def test_what_looks_the_same_for_every_prompt_is_ranked_as_without(
    benchmark: LookupBenchmark, options: dict[str, Any], own_space: bool
) -> None:
    """Second stages, unreadable images, wordings and baselines: all are as with one view."""
    same = dict.fromkeys((*PROMPTS, "other"), vectors(100, 10))
    found = {}
    for prompts in (PROMPTS, ("other",), (None,)):
        module = LookingModule(prompts=prompts, seen=same, own_space=own_space)
        callback, _ = validate(benchmark, module=module, **options)
        ranking = callback.rankings["lookup"]
        views = callback.results["lookup"]["protocol"].pop("views")
        found[views.split(", ")[0]] = callback.results, ranking.images.tolist(), ranking.ranks
    results, images, ranks = found.pop("none")
    assert set(found) == {"2 prompts and none", "1 prompt"}
    for other in found.values():
        assert other[:2] == (results, images)
        assert torch.equal(other[2], ranks)


def test_benchmarks_of_one_gallery_share_its_views() -> None:
    module = LookingModule()
    again = OwnCandidates(name="again", asked=2)
    callback, _ = validate(LookupBenchmark(), again, module=module)
    assert sum(rows.shape[1] for _, rows in module.looked) == 23
    alone, _ = validate(OwnCandidates(name="again", asked=2), module=LookingModule())
    # Its own two prompts are the whole of its protocol, whatever else the gallery is looked at for.
    assert callback.results["again"] == alone.results["again"]


def test_an_approximate_index_serves_views_that_are_ranked_whole() -> None:
    """Those of queries with candidates are ranked exactly, as such queries always are."""
    searching = "IVF2,Flat;nprobe=2"
    for kind in (LookupBenchmark, OwnCandidates):
        callback, _ = validate(
            kind(), module=LookingModule(), callback=RetrievalEvaluation(factory=searching)
        )
        exact, _ = validate(kind(), module=LookingModule())
        results = callback.results["lookup"]
        assert results["protocol"]["index"] == searching
        assert results["protocol"]["index_recall_at_10"] == 1.0
        assert results["metrics"] == exact.results["lookup"]["metrics"]


def test_captions_are_read_and_not_looked_at() -> None:
    class Captions(LookupBenchmark):
        def setup(self) -> None:
            super().setup()
            self.gallery = [Caption(f"image{i}", f"text {i}") for i in range(self.images)]

    module = LookingModule(parts=False)
    callback, _ = validate(Captions(), module=module)
    assert module.asked == 0 and not module.looked
    assert callback.results["lookup"]["protocol"]["views"] == "none"


# ---- what is refused ------------------------------------------------------------------------


def test_a_constant_encoder_ranks_last_in_every_view() -> None:
    one = torch.ones(100, 8)
    module = LookingModule(seen={prompt: k * one for k, prompt in enumerate(PROMPTS, start=1)})
    callback, _ = validate(OwnCandidates(), module=module)
    benchmark = OwnCandidates()
    benchmark.setup()
    for number, query in enumerate(benchmark.queries):
        left = set(query.candidates or ()) - set(query.exclude)
        assert callback.rankings["lookup"].ranks[number] == len(left) - len(query.targets) + 1


def test_nan_in_one_view_is_refused() -> None:
    seen = tables()
    seen["which place?"][7] = torch.nan
    with pytest.raises(UserError, match="1 of 23 gallery vectors hold NaN"):
        validate(LookupBenchmark(), module=LookingModule(seen=seen))


def test_a_vector_that_was_forgotten_is_a_defect() -> None:
    seen = tables()
    seen["which place?"][7] = 0
    with pytest.raises(RuntimeError, match=r"^1 items .* looked at for 'which place\?'"):
        validate(LookupBenchmark(), module=LookingModule(seen=seen))


def test_prompts_alone_do_not_look() -> None:
    class Blind(LookingModule):
        encode_views = RetrievalModule.encode_views

    with pytest.raises(NotImplementedError, match="Blind gives prompts, but has no encode_views"):
        validate(LookupBenchmark(), module=Blind())


class CountsSteps(LookingModule):
    steps = 0

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        self.steps += 1
        return super().losses(batch)


def fit(module: LookingModule, **options: Any) -> RetrievalEvaluation:
    callback = RetrievalEvaluation()
    trainer = quiet_trainer(callbacks=[callback], **options)
    trainer.fit(module, datamodule=LookupData(LookupBenchmark()))
    return callback


def test_a_query_that_needs_a_prompt_is_refused_before_training() -> None:
    module = CountsSteps(refused=4)
    with pytest.raises(UserError, match="query number 4 has no prompt"):
        fit(module, num_sanity_val_steps=0)
    assert module.steps == 0
    with pytest.raises(UserError, match="query number 4 has no prompt"):
        validate(LookupBenchmark(), module=LookingModule(refused=4))
    # Without evaluation nothing is asked.
    fit(module, limit_val_batches=0)
    assert module.steps == 2 and module.asked == 1


# ---- Lightning ------------------------------------------------------------------------------


def test_prompts_are_asked_for_once_a_run() -> None:
    module = LookingModule()
    callback = fit(module, max_epochs=2, num_sanity_val_steps=1)
    assert module.asked == 1
    alone, _ = validate(LookupBenchmark(), module=module)
    assert module.asked == 2
    assert callback.results == alone.results


def test_test_runs_and_trials_look_as_well() -> None:
    module, callback = LookingModule(), RetrievalEvaluation()
    data = LookupData(LookupBenchmark())
    quiet_trainer(callbacks=[callback]).test(module, datamodule=data, verbose=False)
    assert callback.results == validate(LookupBenchmark(), module=LookingModule())[0].results
    trial = LookingModule()
    fit(trial, fast_dev_run=True)
    assert len(trial.looked) == 1
