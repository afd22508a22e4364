from __future__ import annotations

import dataclasses
from typing import Any

import lightning as L
import pytest
import torch

from callbacks.retrieval import RetrievalEvaluation
from cirlab.benchmarks.base import Benchmark
from cirlab.errors import UserError
from cirlab.metrics import best_ranks
from cirlab.records import Caption, Query
from cirlab.retrieval.index import GalleryIndex
from cirlab.retrieval.reranking import reranked
from tests.callbacks.lookup import LookupBenchmark, LookupData, LookupModule, quiet_trainer


def validate(
    *benchmarks: Benchmark,
    module: L.LightningModule | None = None,
    callback: RetrievalEvaluation | None = None,
    **options: Any,
) -> tuple[RetrievalEvaluation, dict[str, float]]:
    callback = callback or RetrievalEvaluation()
    data = LookupData(*benchmarks, **options)
    trainer = quiet_trainer(callbacks=[callback])
    trainer.validate(module or LookupModule(), datamodule=data, verbose=False)
    return callback, {name: float(value) for name, value in trainer.callback_metrics.items()}


def expected(benchmark: LookupBenchmark, query: torch.Tensor, gallery: torch.Tensor) -> Any:
    """Metrics without any of the callback's machinery."""
    benchmark.setup()
    names = [image.id for image in benchmark.gallery]
    ranks = GalleryIndex(names, gallery).target_ranks(query, benchmark.queries)
    return benchmark.score(ranks, benchmark.queries)


def test_results_are_those_of_the_vectors() -> None:
    module, benchmark = LookupModule(), LookupBenchmark()
    callback, logged = validate(benchmark, module=module)
    results = callback.results["lookup"]
    gallery = module.get_buffer("gallery")[:23]
    parts = {n: module.get_buffer(n)[:11] for n in ("query", "image_only", "text_only")}
    assert results["metrics"] == expected(benchmark, parts["query"], gallery)
    parts["sum"] = parts["image_only"] + parts["text_only"]
    assert set(results["baselines"]) == {"image_only", "text_only", "sum"}
    for name, metrics in results["baselines"].items():
        assert metrics == expected(benchmark, parts[name], gallery)
        for metric, value in metrics.items():
            assert logged[f"val/lookup/baseline_{name}/{metric}"] == pytest.approx(value)
    for metric, value in results["metrics"].items():
        assert logged[f"val/lookup/{metric}"] == pytest.approx(value)
    assert not any("@" in name or "parity" in name for name in logged)


def test_the_sum_is_of_unit_vectors() -> None:
    module = LookupModule()
    callback, _ = validate(LookupBenchmark(), module=module)
    module.get_buffer("image_only").mul_(100)
    scaled, _ = validate(LookupBenchmark(), module=module)
    assert scaled.results == callback.results


def test_baselines_rank_in_their_own_space() -> None:
    module, benchmark = LookupModule(own_space=True), LookupBenchmark()
    callback, _ = validate(benchmark, module=module)
    results = callback.results["lookup"]
    query, gallery = module.get_buffer("query")[:11], module.get_buffer("gallery")[:23]
    assert results["metrics"] == expected(benchmark, query, gallery)
    text, space = module.get_buffer("text_only")[:11], module.get_buffer("baseline")[:23]
    assert results["baselines"]["text_only"] == expected(benchmark, text, space)


def test_queries_are_counted_that_their_parts_alone_rank_worse() -> None:
    module, benchmark = LookupModule(), LookupBenchmark()
    callback, _ = validate(benchmark, module=module)
    index = GalleryIndex([i.id for i in benchmark.gallery], module.get_buffer("gallery")[:23])
    whole, text = (
        best_ranks(index.target_ranks(module.get_buffer(name)[:11], benchmark.queries).targets)
        for name in ("query", "text_only")
    )
    counts = callback.results["lookup"]["wins"]["text_only"]["all"]
    assert counts == {
        "better": int((whole < text).sum()),
        "worse": int((whole > text).sum()),
        "equal": int((whole == text).sum()),
    }
    assert counts["better"] and counts["worse"]


def test_parts_count_for_the_kinds_of_queries_that_the_method_composes() -> None:
    class Other(LookupModule):
        composed_kinds = frozenset({"dialogue"})

    callback, _ = validate(LookupBenchmark(), module=Other())
    results = callback.results["lookup"]
    assert results["baselines"] == results["wins"] == {}


def test_breakdowns_split_the_queries_and_weigh_to_the_whole() -> None:
    callback, _ = validate(LookupBenchmark())
    results = callback.results["lookup"]
    groups = results["breakdown"]["parity"]
    assert groups["all"] == results["metrics"]
    for metric, value in results["metrics"].items():
        weighted = (6 * groups["even"][metric] + 5 * groups["odd"][metric]) / 11
        assert weighted == pytest.approx(value)


def test_the_protocol_says_what_was_ranked() -> None:
    callback, _ = validate(LookupBenchmark())
    protocol = callback.results["lookup"]["protocol"]
    assert protocol["pool_size"] == 23
    assert protocol["queries"] == 11
    assert protocol["tie_rule"] == "pessimistic"
    assert protocol["index"] == "Flat"
    assert protocol["views"] == "none"
    assert len(protocol["annotations"]) == 16


def test_methods_without_parts_have_no_baselines() -> None:
    callback, logged = validate(LookupBenchmark(), module=LookupModule(parts=False))
    assert callback.results["lookup"]["baselines"] == {}
    assert not any("baseline" in name for name in logged)


def test_benchmarks_of_one_gallery_share_its_encoding() -> None:
    class Counting(LookupModule):
        encoded = 0

        def validation_step(self, batch: Any, *rest: Any) -> Any:
            self.encoded += len(batch["index"]) if batch["kind"] == "gallery" else 0
            return super().validation_step(batch, *rest)

    module = Counting()
    first, second = LookupBenchmark(), LookupBenchmark(name="again", asked=4)
    callback, _ = validate(first, second, module=module)
    assert module.encoded == 23
    alone, _ = validate(LookupBenchmark(name="again", asked=4))
    assert callback.results["again"] == alone.results["again"]


@pytest.mark.parametrize("eval_batch_size", [1, 4, 100])
def test_batches_do_not_matter(eval_batch_size: int) -> None:
    callback, _ = validate(LookupBenchmark(), eval_batch_size=eval_batch_size)
    reference, _ = validate(LookupBenchmark())
    assert callback.results == reference.results


def test_rankings_lead_to_images_and_leave_the_reference_out() -> None:
    module, benchmark = LookupModule(), LookupBenchmark()
    callback, _ = validate(benchmark, module=module, callback=RetrievalEvaluation(top_k=22))
    ranking = callback.rankings["lookup"]
    assert ranking.queries == tuple(range(11))
    scores = module.get_buffer("query")[:11] @ module.get_buffer("gallery")[:23].T
    for query in range(11):
        listed = ranking.images[query].tolist()
        assert sorted(listed) == [i for i in range(23) if i != (query + 5) % 23]
        assert scores[query][listed].diff().max() <= 0
        places = [listed.index(target) + 1 for target in (query, query + 1)]
        assert ranking.ranks[query] == min(places)


def test_an_approximate_index_stores_what_it_costs() -> None:
    callback, _ = validate(
        LookupBenchmark(), callback=RetrievalEvaluation(factory="IVF2,Flat;nprobe=2")
    )
    exact, _ = validate(LookupBenchmark())
    results = callback.results["lookup"]
    assert results["protocol"]["index"] == "IVF2,Flat;nprobe=2"
    assert results["protocol"]["index_recall_at_10"] == 1.0
    assert results["metrics"] == exact.results["lookup"]["metrics"]


# ---- unreadable images ----------------------------------------------------------------------


def test_unreadable_images_are_left_out_and_counted() -> None:
    """Image 3 is a target of queries 2 and 3, and the look-alike or reference of others."""
    module, benchmark = LookupModule(), LookupBenchmark(broken=[3, 20])
    callback, _ = validate(benchmark, module=module, on_error="skip")
    results = callback.results["lookup"]
    # Query 3 has its only target within the subset there; no query has one of them as reference.
    assert results["skipped_images"] == 2
    assert results["protocol"]["pool_size"] == 21
    assert results["protocol"]["queries"] == 10
    ranking = callback.rankings["lookup"]
    assert 3 not in ranking.queries
    assert not {3, 20} & set(ranking.images.flatten().tolist())


def test_queries_with_an_unreadable_reference_are_left_out() -> None:
    # The reference of query 6 is image 11, which is a target of query 10 only.
    callback, _ = validate(LookupBenchmark(broken=[11]), on_error="skip")
    results = callback.results["lookup"]
    assert results["skipped_images"] == 2  # in the gallery, and as a reference
    assert results["protocol"]["queries"] == 10
    assert 6 not in callback.rankings["lookup"].queries


def test_ranks_do_not_count_unreadable_images() -> None:
    callback, _ = validate(LookupBenchmark(broken=[11]), on_error="skip")
    module, benchmark = LookupModule(), LookupBenchmark()
    benchmark.setup()
    queries = [dataclasses.replace(query, subset=None) for query in benchmark.queries[:6]]
    kept = [i for i in range(23) if i != 11]
    index = GalleryIndex([f"image{i}" for i in kept], module.get_buffer("gallery")[kept])
    ranks = index.target_ranks(module.get_buffer("query")[:6], queries)
    best = callback.rankings["lookup"].ranks[:6]
    assert torch.equal(best, ranks.targets.min(dim=1).values)


def test_nothing_left_to_rank_is_refused() -> None:
    with pytest.raises(UserError, match="'lookup' has no query left"):
        validate(LookupBenchmark(asked=1, broken=[5]), on_error="skip")


class Captions(LookupBenchmark):
    """Queries look for one of the gallery's texts."""

    def setup(self) -> None:
        super().setup()
        self.gallery = [Caption(f"image{i}", f"text {i}") for i in range(self.images)]


def test_a_gallery_may_hold_texts_read_as_queries_are() -> None:
    module = LookupModule(parts=False)
    callback, _ = validate(Captions(asked=9), module=module)
    vectors = module.get_buffer("query")
    benchmark = Captions(asked=9)
    assert callback.results["lookup"]["metrics"] == expected(benchmark, vectors[:9], vectors[:23])


class HeldBack(LookupBenchmark):
    """Its answers are not known."""

    answered = False
    list_size = 15

    def setup(self) -> None:
        super().setup()
        self.queries = [dataclasses.replace(query, targets=()) for query in self.queries]


def test_a_test_split_is_ranked_but_not_scored() -> None:
    callback, logged = validate(HeldBack())
    results, ranking = callback.results["lookup"], callback.rankings["lookup"]
    assert results["metrics"] == results["baselines"] == {}
    assert results["protocol"]["queries"] == 11
    assert ranking.images.shape == (11, 15)
    assert ranking.subset is not None and ranking.subset.shape == (11, 4)
    assert logged == {}


def test_a_benchmark_without_any_target_is_refused() -> None:
    class Emptied(HeldBack):
        answered = True

    with pytest.raises(UserError, match="no query of benchmark 'lookup' has a target"):
        validate(Emptied())


class TwoWordings(LookupBenchmark):
    """Each query is asked in the words of its neighbour, too."""

    @property
    def wordings(self) -> int:
        return 2

    def asked(self) -> list[Query]:
        other = [dataclasses.replace(q, text=f"make it number {i + 1}") for i, q in self._numbered]
        return [query for pair in zip(self.queries, other, strict=True) for query in pair]

    @property
    def _numbered(self) -> list[tuple[int, Query]]:
        return list(enumerate(self.queries))


def test_wordings_of_a_query_are_averaged() -> None:
    module = LookupModule(parts=False)
    callback, _ = validate(TwoWordings(), module=module)
    query, gallery = module.get_buffer("query"), module.get_buffer("gallery")
    mean = query[:11] + query[1:12]
    assert callback.results["lookup"]["metrics"] == expected(TwoWordings(), mean, gallery[:23])


class Averaged(LookupBenchmark):
    average_over = "parity"


def test_macro_metrics_are_means_over_the_values_of_a_tag() -> None:
    callback, logged = validate(Averaged())
    results = callback.results["lookup"]
    groups = results["breakdown"]["parity"].values()
    for name in ("recall_at_5", "map_at_5"):
        mean = sum(group[name] for group in groups) / 3
        assert results["metrics"][f"macro_{name}"] == pytest.approx(mean)
        assert logged[f"val/lookup/macro_{name}"] == pytest.approx(mean)
        assert f"macro_{name}" in results["baselines"]["sum"]
    benchmark = Averaged()
    benchmark.setup()
    assert benchmark.metric_names() == sorted(results["metrics"])


# ---- Lightning ------------------------------------------------------------------------------


def test_nan_is_refused() -> None:
    with pytest.raises(UserError, match="NaN"):
        validate(LookupBenchmark(), module=LookupModule(bad_query=4))


def test_queries_that_break_a_rule_are_refused_before_anything_is_encoded() -> None:
    class Wrong(LookupBenchmark):
        def setup(self) -> None:
            super().setup()
            self.gallery = self.gallery[:8]

    class Never(LookupModule):
        def validation_step(self, *_: Any) -> Any:
            raise AssertionError("encoded")

    with pytest.raises(UserError, match="is not among the 8 images"):
        validate(Wrong(), module=Never())


def test_an_evaluation_that_misses_rows_is_a_defect() -> None:
    class Short(LookupData):
        def _eval_loader(self, items: Any, collate: Any) -> Any:
            return super()._eval_loader(items[:-2], collate)

    trainer = quiet_trainer(callbacks=[RetrievalEvaluation()])
    with pytest.raises(RuntimeError, match="gallery/shelf: 2 of 23 rows were never encoded"):
        trainer.validate(LookupModule(), datamodule=Short(LookupBenchmark()), verbose=False)


def test_fit_evaluates_after_every_epoch_but_not_in_the_sanity_check() -> None:
    class Counting(RetrievalEvaluation):
        evaluations = 0

        def _evaluate(self, *args: Any, **options: Any) -> None:
            self.evaluations += 1
            super()._evaluate(*args, **options)

    callback = Counting()
    trainer = quiet_trainer(callbacks=[callback], max_epochs=2, num_sanity_val_steps=2)
    trainer.fit(LookupModule(), datamodule=LookupData(LookupBenchmark()))
    assert callback.evaluations == 2
    assert "val/lookup/recall_at_5" in trainer.callback_metrics
    assert callback.results == validate(LookupBenchmark())[0].results


def test_a_test_run_logs_under_its_own_name() -> None:
    callback = RetrievalEvaluation()
    trainer = quiet_trainer(callbacks=[callback])
    trainer.test(LookupModule(), datamodule=LookupData(LookupBenchmark()), verbose=False)
    assert "test/lookup/recall_at_5" in trainer.callback_metrics
    assert callback.results == validate(LookupBenchmark())[0].results


def test_a_limit_on_evaluation_batches_is_refused() -> None:
    trainer = quiet_trainer(callbacks=[RetrievalEvaluation()], limit_val_batches=1)
    with pytest.raises(UserError, match="limit_val_batches is 1,"):
        trainer.validate(LookupModule(), datamodule=LookupData(LookupBenchmark()))


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"overfit_batches": 1}])
def test_trials_on_a_few_batches_work_without_evaluation(options: dict[str, Any]) -> None:
    callback = RetrievalEvaluation()
    trainer = quiet_trainer(callbacks=[callback], **options)
    trainer.fit(LookupModule(), datamodule=LookupData(LookupBenchmark()))
    assert callback.results == {}


def test_training_without_evaluation_is_possible() -> None:
    callback = RetrievalEvaluation()
    data = LookupData(LookupBenchmark())
    quiet_trainer(callbacks=[callback], limit_val_batches=0).fit(LookupModule(), datamodule=data)
    assert callback.results == {}


def test_without_benchmarks_there_is_nothing_to_evaluate() -> None:
    callback = RetrievalEvaluation()
    quiet_trainer(callbacks=[callback]).fit(LookupModule(), datamodule=LookupData())
    assert callback.results == {}


def test_a_trainer_without_data_module_is_refused() -> None:
    loader = torch.utils.data.DataLoader([0])
    with pytest.raises(UserError, match="needs a data module with benchmarks"):
        quiet_trainer(callbacks=[RetrievalEvaluation()]).validate(LookupModule(), loader)


@pytest.mark.parametrize("top_k", [3, 10])
def test_the_second_stage_orders_the_best_images_again(top_k: int) -> None:
    """As many as the benchmark says, however many are kept for looking at."""
    module, benchmark = LookupModule(), LookupBenchmark(rerank_depth=6)
    callback, _ = validate(benchmark, module=module, callback=RetrievalEvaluation(top_k=top_k))
    plain, _ = validate(LookupBenchmark(), module=module)
    query, gallery = module.get_buffer("query")[:11], module.get_buffer("gallery")[:23]
    names = [image.id for image in benchmark.gallery]
    ranked = GalleryIndex(names, gallery).rank(query, benchmark.queries, k=6)
    rows = torch.arange(11)[:, None].expand(11, 6)
    second = module.second[rows, ranked.best.positions] + ranked.best.scores
    targets = torch.tensor([[q, q + 1] for q in range(11)])
    expected = reranked(ranked, targets, second)
    results = callback.results["lookup"]
    assert results["metrics"] == benchmark.score(expected.ranks, benchmark.queries)
    assert results["metrics"] != plain.results["lookup"]["metrics"]
    assert results["baselines"] == plain.results["lookup"]["baselines"]
    assert results["protocol"]["rerank_depth"] == 6
    listed = callback.rankings["lookup"].images
    assert torch.equal(listed[:, :6], expected.best.positions)
    # Behind them stands what the first stage found next.
    assert torch.equal(listed[:, 6:], plain.rankings["lookup"].images[:, 6 : listed.shape[1]])


def test_batches_must_give_the_same_vectors() -> None:
    class Uneven(LookupModule):
        def validation_step(self, batch: Any, *rest: Any) -> Any:
            found = super().validation_step(batch, *rest)
            if batch["kind"] == "queries" and 0 in batch["index"]:
                del found["text_only"]
            return found

    with pytest.raises(RuntimeError, match=r"gave index, .* for one batch and index, "):
        validate(LookupBenchmark(), module=Uneven())


def test_without_a_second_stage_none_can_be_asked_for() -> None:
    class OneStage(LookupModule):
        reranks = False

    with pytest.raises(UserError, match=r"'lookup' has the best 6 items ranked again, but OneSta"):
        validate(LookupBenchmark(rerank_depth=6), module=OneStage())
