from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cirlab.errors import UserError
from cirlab.records import FileImage, Query, Triplet
from datamodules.checks import check_files, check_kind, image_files
from tests.datamodules.toys import (
    NumbersData,
    ToyBenchmark,
    ToyModule,
    fit,
    jpeg,
    trainer,
)


def checkpoints(folder: Path) -> list[ModelCheckpoint]:
    """One after every step, one at each epoch's end, one at each validation's end."""
    often: dict[str, Any] = {"filename": "{epoch}-{step}", "save_top_k": -1}
    return [
        ModelCheckpoint(folder / "step", every_n_train_steps=1, **often),
        ModelCheckpoint(folder / "epoch", every_n_epochs=1, save_on_train_epoch_end=True, **often),
        ModelCheckpoint(
            folder / "validation",
            every_n_epochs=1,
            save_on_train_epoch_end=False,
            mode="max",  # tells it from the one before: their states are filed by settings
            **often,
        ),
    ]


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        (0, {}),
        (0, {"limit_train_batches": 2}),
        (0, {"val_check_interval": 2}),
        (0, {"accumulate_grad_batches": 2}),
        (2, {}),
    ],
)
def test_resume_from_any_checkpoint_sees_exactly_the_rest(
    tmp_path: Path, workers: int, options: dict[str, Any]
) -> None:
    def data() -> NumbersData:
        return NumbersData(length=26, num_workers=workers, benchmarks=[ToyBenchmark()], series=2)

    options = {"max_epochs": 2 if workers else 3, **options}
    whole = fit(data(), enable_checkpointing=True, callbacks=checkpoints(tmp_path), **options)
    saved = sorted(tmp_path.glob("*/*.ckpt"))
    if workers:  # starting processes is slow: one in mid-epoch, one at an epoch's last step
        saved = [path for path in saved if path.parent.name == "step"][:3]
    assert len(saved) >= 3
    for path in saved:
        loops = torch.load(path, weights_only=True)["loops"]["fit_loop"]
        done = loops["epoch_loop.batch_progress"]["total"]["processed"]
        rest = fit(data(), ckpt_path=path, **options)
        assert rest.seen == whole.seen[done:], path
        assert torch.equal(rest.weight, whole.weight), path


def test_workers_change_nothing() -> None:
    alone = fit(NumbersData(num_workers=0), max_epochs=2)
    shared = fit(NumbersData(num_workers=2), max_epochs=2)
    assert alone.seen == shared.seen


def test_random_numbers_in_collators_differ_between_batches_and_epochs() -> None:
    module = fit(NumbersData(), max_epochs=2)
    noise = [value for _, _, values in module.seen for value in values]
    assert len(noise) == 2 * 5 * 3
    assert len(set(noise)) == len(noise)


def test_loaders_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    fit(NumbersData(benchmarks=[ToyBenchmark()]))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_resuming_with_other_data_is_refused(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    fit(NumbersData(length=40), enable_checkpointing=True, callbacks=[callback])
    path = sorted(tmp_path.glob("*.ckpt"))[0]
    with pytest.raises(UserError, match="training samples of 40, this run has 48"):
        fit(NumbersData(length=48), ckpt_path=path)


@pytest.mark.parametrize("options", [{"overfit_batches": 2}, {"fast_dev_run": True}])
def test_lightnings_debug_modes_work(options: dict[str, Any]) -> None:
    module = fit(NumbersData(benchmarks=[ToyBenchmark()]), **options)
    assert len(module.seen) == options.get("overfit_batches", 1)


# ---- evaluation ------------------------------------------------------------------------------


def test_each_gallery_is_loaded_once_and_before_the_queries() -> None:
    class Shared(ToyBenchmark):
        @property
        def gallery_id(self) -> str:
            return "shared"

    data = NumbersData(benchmarks=[Shared("a"), Shared("b", queries=3), ToyBenchmark("c")])
    module = ToyModule()
    trainer().validate(module, datamodule=data, verbose=False)
    sources = [(batch["kind"], batch["source"]) for batch in module.evaluated]
    assert list(dict.fromkeys(sources)) == [
        ("gallery", "shared"),
        ("gallery", "c"),
        ("queries", "a"),
        ("queries", "b"),
        ("queries", "c"),
    ]
    assert list(data.val_dataloader()) == [
        "gallery/shared",
        "gallery/c",
        "queries/a",
        "queries/b",
        "queries/c",
    ]
    indices = [
        i for batch in module.evaluated if batch["source"] == "shared" for i in batch["index"]
    ]
    assert indices == list(range(7))
    assert all(batch["index"].dtype == torch.long for batch in module.evaluated)
    assert all(batch["valid"].all() and batch["skipped"] == [] for batch in module.evaluated)
    assert module.evaluated[0]["inputs"]["ids"] == ["0", "1", "2", "3"]


def test_test_evaluates_the_same_as_validate() -> None:
    module = ToyModule()
    trainer().test(module, datamodule=NumbersData(benchmarks=[ToyBenchmark()]), verbose=False)
    assert sum(len(batch["index"]) for batch in module.evaluated) == 7 + 5


def test_training_without_benchmarks() -> None:
    module = fit(NumbersData(benchmarks=None))
    assert len(module.seen) == 5
    assert module.evaluated == []


@pytest.mark.parametrize("replicas", [2, 3])
def test_every_process_runs_the_same_number_of_batches(
    monkeypatch: pytest.MonkeyPatch, replicas: int
) -> None:
    seen: list[int] = []
    lengths = set()
    for rank in range(replicas):
        data = NumbersData(benchmarks=[ToyBenchmark(images=7)], eval_batch_size=2)
        monkeypatch.setattr(data, "_place", lambda rank=rank: (rank, replicas))
        module = ToyModule()
        trainer().validate(module, datamodule=data, verbose=False)
        gallery = [batch for batch in module.evaluated if batch["kind"] == "gallery"]
        lengths.add(len(gallery))
        seen += [int(i) for batch in gallery for i in batch["index"]]
    assert len(lengths) == 1
    assert set(seen) == set(range(7))


# ---- broken images ---------------------------------------------------------------------------


def broken_gallery(folder: Path) -> list[Path]:
    files = [folder / f"{i}.jpg" for i in range(3)]
    files[0].write_bytes(jpeg(100))
    files[1].write_bytes(jpeg(100)[:100])
    return files


def test_a_missing_gallery_file_is_told_before_any_work(tmp_path: Path) -> None:
    data = NumbersData(benchmarks=[ToyBenchmark(files=broken_gallery(tmp_path), queries=2)])
    with pytest.raises(UserError, match=r"1 of 3 images are missing, the first is .*2\.jpg"):
        trainer().validate(ToyModule(), datamodule=data)


def test_an_image_of_gallery_and_queries_is_counted_once(tmp_path: Path) -> None:
    benchmark = ToyBenchmark(files=broken_gallery(tmp_path))
    benchmark.setup()
    elsewhere = FileImage(id="elsewhere", path=tmp_path / "elsewhere.jpg")
    images = [*benchmark.gallery, elsewhere, elsewhere]
    benchmark.queries = [Query(str(i), "", targets=(), image=im) for i, im in enumerate(images)]
    with pytest.raises(UserError, match=r"^2 of 4 images are missing"):
        check_files(list(image_files(benchmark)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_gallery_image_ends_the_run_in_one_sentence(tmp_path: Path, workers: int) -> None:
    files = broken_gallery(tmp_path)[:2]
    data = NumbersData(benchmarks=[ToyBenchmark(files=files, queries=2)], num_workers=workers)
    with pytest.raises(UserError, match=r"1\.jpg does not decode") as caught:
        trainer().validate(ToyModule(), datamodule=data)
    assert "\n" not in str(caught.value)


def test_broken_gallery_images_are_marked_and_named(tmp_path: Path) -> None:
    files = broken_gallery(tmp_path)
    data = NumbersData(benchmarks=[ToyBenchmark(files=files, queries=2)], on_error="skip")
    module = ToyModule()
    trainer().validate(module, datamodule=data, verbose=False)
    batch = module.evaluated[0]
    assert batch["valid"].tolist() == [True, False, False]
    assert batch["skipped"] == ["1.jpg", "2.jpg"]
    assert batch["inputs"]["grey"].tolist() == [100.0, 0.0, 0.0]


# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (Triplet, "ToyModule learns from Triplet records, but NumbersData gives Pair records"),
        ((Triplet, str), "ToyModule learns from Triplet or str records, but NumbersData gives"),
        ((), "ToyModule is training-free, so fit has nothing to do; run validate instead"),
    ],
)
def test_records_the_method_does_not_learn_from_are_refused(
    record: type | tuple[type, ...], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        fit(NumbersData(), ToyModule(record=record))
    trainer().validate(
        ToyModule(record=record),
        datamodule=NumbersData(benchmarks=[ToyBenchmark()]),
        verbose=False,
    )


@pytest.mark.parametrize(
    ("benchmarks", "sentence"),
    [
        ([ToyBenchmark("a"), ToyBenchmark("a")], "two benchmarks are called 'a'"),
        ([ToyBenchmark(images=0)], "the gallery of benchmark 'toy' is empty"),
        ([ToyBenchmark(queries=0)], "benchmark 'toy' has no queries"),
    ],
)
def test_unusable_benchmarks_are_refused(benchmarks: list[ToyBenchmark], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        trainer().validate(ToyModule(), datamodule=NumbersData(benchmarks=benchmarks))


def test_a_query_kind_the_method_does_not_answer_is_refused() -> None:
    module = ToyModule(kinds=("composed", "image"))
    with pytest.raises(UserError, match="asks text queries, but ToyModule answers only composed a"):
        trainer().validate(module, datamodule=NumbersData(benchmarks=[ToyBenchmark()]))


def test_a_method_without_query_kinds_is_told_where_to_name_them() -> None:
    with pytest.raises(UserError, match=r"ToyModule answers no queries at all; .* query_kinds"):
        trainer().validate(ToyModule(kinds=()), datamodule=NumbersData(benchmarks=[ToyBenchmark()]))


@pytest.mark.parametrize(
    ("kinds", "answers"),
    [
        (("image",), "only image queries"),
        (("image", "composed"), "only composed and image queries"),
        (("image", "composed", "dialogue"), "only composed, dialogue and image queries"),
    ],
)
def test_kinds_that_a_method_answers_are_listed(kinds: tuple[str, ...], answers: str) -> None:
    with pytest.raises(UserError, match=f"answers {answers}; remove it"):
        check_kind(ToyModule(kinds=kinds), ToyBenchmark())
