from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from cirlab.cli import main
from cirlab.errors import UserError
from cirlab.records import Pair, SampleKey, Triplet
from datamodules.folder import FolderData
from datamodules.joined import JoinedData, JoinedRecords
from datamodules.loading import Sample
from datamodules.mixed import MixedData, MixedLoader, MixedSampler, MixedSamples, shares
from datamodules.world import WorldData
from tests.datamodules.toys import Numbers, NumbersData, ToyBenchmark, ToyModule, fit, write_folder
from tests.distributed.processes import WORLD, run_in_processes
from tests.tiny_run import tiny_experiment

LENGTHS = [30, 70, 20]


def sampler(lengths: list[int] = LENGTHS, **options: Any) -> MixedSampler:
    return MixedSampler(lengths, **{"batch_size": 8, "seed": 0, **options})


def keys(made: MixedSampler, epoch: int = 0) -> list[SampleKey]:
    made.set_epoch(epoch)
    return list(made)


def part_of(index: int, lengths: list[int] = LENGTHS) -> int:
    return sum(index >= sum(lengths[: i + 1]) for i in range(len(lengths)))


def parts_of(found: list[SampleKey], lengths: list[int] = LENGTHS) -> list[int]:
    return [part_of(key.index, lengths) for key in found]


# ---- shares ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([1, 1], 10, [5, 5]),
        ([0.7, 0.3], 10, [7, 3]),
        ([1, 1, 1], 10, [4, 3, 3]),
        ([5, 3, 1], 7, [4, 2, 1]),  # exact: 3.89, 2.33, 0.78
        ([99, 1], 10, [10, 0]),
        ([1e-9, 1e-9], 4, [2, 2]),
    ],
)
def test_shares_have_the_largest_remainders(
    weights: list[float], total: int, expected: list[int]
) -> None:
    assert shares(weights, total) == expected


@pytest.mark.parametrize("homogeneous", [False, True])
@pytest.mark.parametrize(
    ("weights", "expected"),
    [([2.0, 1.0, 1.0], [80, 40, 40]), ([0.1, 0.1, 0.8], [16, 16, 128])],
)
def test_an_epoch_holds_the_shares_of_the_weights(
    homogeneous: bool, weights: list[float], expected: list[int]
) -> None:
    made = sampler(weights=weights, samples=160, homogeneous=homogeneous)
    for epoch in range(3):
        found = Counter(parts_of(keys(made, epoch)))
        assert [found[part] for part in range(3)] == expected


def test_without_weights_the_parts_keep_their_natural_shares() -> None:
    found = Counter(parts_of(keys(sampler(batch_size=12))))
    assert found == {0: 30, 1: 70, 2: 20}


@pytest.mark.parametrize("homogeneous", [False, True])
def test_every_record_of_a_part_is_seen_before_any_is_seen_again(homogeneous: bool) -> None:
    made = sampler(
        [32, 72, 24], weights=[1, 1, 2], samples=64, homogeneous=homogeneous, batch_size=8
    )
    drawn: dict[int, list[SampleKey]] = {0: [], 1: [], 2: []}
    for epoch in range(9):
        for key in keys(made, epoch):
            drawn[part_of(key.index, [32, 72, 24])].append(key)
    for part, (first, length) in enumerate([(0, 32), (32, 72), (104, 24)]):
        found = drawn[part]
        assert len(found) == 9 * (32 if part == 2 else 16)
        passes = Counter(key.epoch for key in found)
        assert set(passes) == set(range(len(passes)))
        for number in list(passes)[:-1]:
            indices = sorted(key.index for key in found if key.epoch == number)
            assert indices == list(range(first, first + length))
        assert len(set(found)) == len(found), "a record was drawn twice with the same randomness"


def test_what_does_not_fill_a_batch_differs_between_passes() -> None:
    made = sampler([19, 16], homogeneous=True, weights=[1, 1], samples=32)
    seen: set[int] = set()
    for epoch in range(20):
        drawn = [key for key in keys(made, epoch) if key.index < 19]
        assert len(drawn) == 16
        # A batch over the border of two passes might hold a record twice.
        assert all(len({key.epoch for key in drawn[at : at + 8]}) == 1 for at in (0, 8))
        seen.update(key.index for key in drawn)
    assert seen == set(range(19))


# ---- batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("series", [1, 2])
def test_homogeneous_batches_come_from_one_part(replicas: int, series: int) -> None:
    ranks = [
        sampler(
            [64, 96, 40],
            homogeneous=True,
            weights=[1, 2, 1],
            batch_size=16 // replicas,
            replicas=replicas,
            rank=rank,
            series=series,
        )
        for rank in range(replicas)
    ]
    for epoch in range(3):
        dealt = [keys(made, epoch) for made in ranks]
        size = 16 // replicas
        labels = []
        for batch in range(len(dealt[0]) // size):
            whole = [key for own in dealt for key in own[batch * size : (batch + 1) * size]]
            (label,) = set(parts_of(whole, [64, 96, 40]))
            assert len(set(whole)) == 16
            labels.append(label)
        assert len(set(labels)) == 3
        assert labels != sorted(labels), "the parts stand one after the other"


def test_other_batches_are_mixed() -> None:
    found = parts_of(keys(sampler(weights=[1, 1, 1], samples=240)))
    mixed = [len(set(found[at : at + 8])) > 1 for at in range(0, 240, 8)]
    assert sum(mixed) > 25


@pytest.mark.parametrize("homogeneous", [False, True])
@pytest.mark.parametrize("series", [1, 2])
@pytest.mark.parametrize("replicas", [2, 4])
def test_global_batches_are_those_of_one_process(
    replicas: int, series: int, homogeneous: bool
) -> None:
    options: dict[str, Any] = {
        "weights": [3, 1, 2],
        "samples": 210,
        "homogeneous": homogeneous,
        "series": series,
        "seed": 5,
    }
    for epoch in (0, 4):
        alone = keys(sampler(batch_size=16, **options), epoch)
        ranks = [
            keys(sampler(batch_size=16 // replicas, rank=rank, replicas=replicas, **options), epoch)
            for rank in range(replicas)
        ]
        size = 16 // replicas
        assert len(alone) == 208
        for batch in range(13):
            dealt = [key for own in ranks for key in own[batch * size : (batch + 1) * size]]
            assert sorted(dealt) == sorted(alone[batch * 16 : (batch + 1) * 16])


@pytest.mark.parametrize("homogeneous", [False, True])
def test_series_stay_together(homogeneous: bool) -> None:
    lengths = [33, 70, 21]  # not all multiples of a series
    made = sampler(lengths, series=4, batch_size=8, homogeneous=homogeneous)
    found = keys(made, 1)
    first = {0: 0, 1: 33, 2: 103}
    for at in range(0, len(found), 4):
        start = found[at]
        part = part_of(start.index, lengths)
        assert (start.index - first[part]) % 4 == 0
        assert found[at : at + 4] == [SampleKey(start.epoch, start.index + i) for i in range(4)]
        assert start.index + 3 < first[part] + lengths[part]


# ---- determinism and resume -----------------------------------------------------------------


@pytest.mark.parametrize("homogeneous", [False, True])
def test_the_order_depends_on_seed_and_epoch_only(homogeneous: bool) -> None:
    first, again = (sampler(homogeneous=homogeneous) for _ in range(2))
    assert keys(first, 3) == keys(again, 3)
    assert keys(first, 3) != keys(first, 4)
    assert keys(first, 3) == keys(again, 3)
    assert keys(first, 3) != keys(sampler(homogeneous=homogeneous, seed=1), 3)
    assert first.order(3).tolist() == [key.index for key in keys(first, 3)]
    assert len(first) == len(keys(first, 3))


def mixed(lengths: list[int] = LENGTHS, **options: Any) -> MixedData:
    settings: dict[str, Any] = {"batch_size": 8, "eval_batch_size": 4, "num_workers": 0, **options}
    return MixedData([NumbersData(length) for length in lengths], **settings)


@pytest.mark.parametrize(("homogeneous", "workers"), [(False, 0), (True, 0), (True, 2)])
def test_resume_sees_exactly_the_rest(tmp_path: Path, homogeneous: bool, workers: int) -> None:
    def data() -> MixedData:
        return mixed(
            weights=[1, 1, 2],
            samples=40,
            homogeneous=homogeneous,
            num_workers=workers,
            benchmarks=[ToyBenchmark()],
        )

    often = ModelCheckpoint(
        tmp_path, filename="{epoch}-{step}", every_n_train_steps=1, save_top_k=-1
    )
    whole = fit(data(), enable_checkpointing=True, callbacks=[often], max_epochs=3)
    assert len(whole.seen) == 15
    saved = sorted(tmp_path.glob("*.ckpt"))
    for path in saved[2:9:3] if workers else saved:
        loops = torch.load(path, weights_only=True)["loops"]["fit_loop"]
        done = loops["epoch_loop.batch_progress"]["total"]["processed"]
        rest = fit(data(), ckpt_path=path, max_epochs=3)
        assert rest.seen == whole.seen[done:], path
        assert torch.equal(rest.weight, whole.weight), path


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": [3, 1, 1]},
        {"homogeneous": True},
        {"lengths": [40, 60, 20]},  # as many together
        {"lengths": [70, 30, 20], "weights": [1, 1, 2]},
    ],
)
def test_resuming_another_mixture_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    callback = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    fit(mixed(weights=[1, 1, 2]), enable_checkpointing=True, callbacks=[callback])
    path = sorted(tmp_path.glob("*.ckpt"))[0]
    with pytest.raises(UserError, match="other parts, weights, samples or homogeneous"):
        fit(mixed(**{"weights": [1, 1, 2], **changed}), ckpt_path=path)


def test_what_all_samplers_check_is_told_by_them(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    fit(mixed(), enable_checkpointing=True, callbacks=[callback])
    path = sorted(tmp_path.glob("*.ckpt"))[0]
    with pytest.raises(UserError, match="training samples of 120, this run has 96"):
        fit(mixed(samples=96), ckpt_path=path)
    with pytest.raises(UserError, match="seed 0, this run has 3"):
        fit(mixed(seed=3), ckpt_path=path)


def test_a_place_without_mixture_is_refused(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    joined = JoinedData([NumbersData(n) for n in LENGTHS], 8, 4, num_workers=0)
    fit(joined, enable_checkpointing=True, callbacks=[callback])
    with pytest.raises(UserError, match="other parts, weights"):
        fit(mixed(), ckpt_path=sorted(tmp_path.glob("*.ckpt"))[0])


def test_a_place_is_kept_until_the_first_batch() -> None:
    records = JoinedRecords([Numbers(n) for n in LENGTHS])

    def loader() -> MixedLoader:
        return MixedLoader(
            MixedSamples(records, on_error="raise"),
            sampler=sampler(),
            batch_size=8,
            collate_fn=list,
        )

    running = loader()
    batches = iter(running)
    next(batches)
    place = running.state_dict()
    restored = loader()
    restored.load_state_dict(place)
    assert restored.state_dict() == place
    assert list(restored) == list(batches)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_sample_keeps_its_key_which_a_collator_is_seeded_by(on_error: Any) -> None:
    samples = MixedSamples(JoinedRecords([Numbers(n) for n in LENGTHS]), on_error=on_error)
    assert len(samples) == 120
    for key in (SampleKey(0, 29), SampleKey(3, 30), SampleKey(2, 119)):
        sample = samples[key]
        assert isinstance(sample, Sample)
        assert sample.key == key
        part = part_of(key.index)
        local = key.index - sum(LENGTHS[:part])
        assert sample.record.image.id == f"{part}:{local}"
        assert sample.record.captions == (f"{key.epoch}-{local}",)


# ---- the data module ------------------------------------------------------------------------


def texts(module: ToyModule) -> list[list[str]]:
    return [list(batch) for _, batch, _ in module.seen]


class Named(ToyModule):
    """Keeps the ids of images, which tell the parts apart."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, tuple(batch["ids"]), ()))
        self.skipped += batch["skipped"]
        return (self.weight * batch["noise"].sum()).sum()


def test_training_sees_the_shares_in_batches_of_one_part() -> None:
    data = mixed(weights=[1, 2, 1], samples=128, homogeneous=True)
    batches = [list(ids) for _, ids, _ in fit(data, Named(Pair), max_epochs=2).seen]
    labels = [{name.partition(":")[0] for name in batch} for batch in batches]
    assert all(len(label) == 1 for label in labels)
    found = Counter(label.pop() for label in labels[:16])
    assert found == {"0": 4, "1": 8, "2": 4}


def test_records_of_a_later_pass_are_drawn_anew() -> None:
    """The toy's captions tell by which key a record was drawn."""
    data = mixed([8, 8], samples=32)
    captions = [text for batch in texts(fit(data)) for text in batch]
    assert Counter(captions) == Counter(
        {f"{turn}-{index}": 2 for turn in range(2) for index in range(8)}
    )


def test_series_of_the_world_stay_together() -> None:
    worlds: list[Any] = [
        WorldData(samples=16, batch_size=4, eval_batch_size=4, series_size=4) for _ in range(2)
    ]
    data = MixedData(worlds, batch_size=8, eval_batch_size=4, num_workers=0)
    assert data.series == 4
    other: Any = WorldData(samples=16, batch_size=4, eval_batch_size=4, series_size=2)
    with pytest.raises(UserError, match="series of 2 and 4 samples"):
        MixedData([worlds[0], other], batch_size=8, eval_batch_size=4)


def test_a_broken_record_is_replaced_from_its_own_part(tmp_path: Path) -> None:
    parts: list[Any] = []
    for name in "ab":
        names = write_folder(tmp_path / name, count=8)
        (tmp_path / name / names[-1]).unlink()
        root = str(tmp_path / name)
        parts.append(FolderData(root, "pairs", batch_size=1, eval_batch_size=1))
    data = MixedData(parts, 8, 4, homogeneous=True, num_workers=0, on_error="skip")
    module = fit(data, Named(Pair))
    assert sorted(module.skipped) == ["0:images/7.jpg", "1:images/7.jpg"]
    for _, ids, _ in module.seen:
        prefix = ids[0][:2]
        # The last record is broken; the next one of its part is the first.
        expected = [*range(7), 0]
        assert sorted(ids) == sorted(f"{prefix}images/{i}.jpg" for i in expected)


def test_benchmarks_are_its_own() -> None:
    part = NumbersData(20, benchmarks=[ToyBenchmark("of the part")])
    data = MixedData([part], 4, 4, num_workers=0, benchmarks=[ToyBenchmark("own")])
    module = fit(data)
    assert {batch["source"] for batch in module.evaluated} == {"own"}


@pytest.mark.parametrize("options", [{"overfit_batches": 2}, {"fast_dev_run": True}])
def test_lightnings_debug_modes_work(options: dict[str, Any]) -> None:
    module = fit(mixed(benchmarks=[ToyBenchmark()]), **options)
    assert len(module.seen) == options.get("overfit_batches", 1)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"weights": [1, 1]}, r"weights has 2 numbers for 3 parts; give one each"),
        ({"weights": [1, 0, 1]}, r"weights\[1\] is 0; give a number above 0"),
        ({"weights": [1, 1, -2.5]}, r"weights\[2\] is -2\.5;"),
        ({"weights": [1, float("nan"), 1]}, r"weights\[1\] is nan;"),
        ({"weights": [float("inf"), 1, 1]}, r"weights\[0\] is inf;"),
        ({"samples": 0}, r"samples is 0; set it to 1 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        mixed(**options)


def test_parts_of_different_records_are_refused() -> None:
    other = NumbersData(5)
    other.train_record = Triplet
    with pytest.raises(UserError, match="one kind of record, found Pair and Triplet"):
        MixedData([NumbersData(5), other], 4, 4)
    with pytest.raises(UserError, match="no part at all"):
        MixedData([], 4, 4)


@pytest.mark.parametrize(
    ("lengths", "options", "problem"),
    [
        (
            [30, 7],
            {"homogeneous": True},
            r"parts\[1\] holds 7 samples, less than a global batch of 8",
        ),
        ([30, 0], {}, r"parts\[1\] holds 0 samples, less than a series of 1"),
        ([30, 3], {"series": 4}, r"parts\[1\] holds 3 samples, less than a series of 4"),
        (
            [30, 70],
            {"weights": [1, 99], "homogeneous": True},
            r"parts\[0\] gets none of the 12 batches of an epoch; raise its weight",
        ),
        ([30, 70], {"samples": 7}, "holds 7 samples, less than one batch of 8"),
    ],
)
def test_what_an_epoch_cannot_hold_is_refused(
    lengths: list[int], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        sampler(lengths, **options)


def test_it_is_built_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"samples": 64, "batch_size": 16, "eval_batch_size": 32}
    world = {"class_path": "datamodules.WorldData", "init_args": options}
    other = {**world, "init_args": {**options, "full_captions": 0.0}}
    config = tiny_experiment(
        tmp_path,
        data={
            "class_path": "datamodules.mixed.MixedData",
            "init_args": {"parts": [world, other], "weights": [3, 1], "homogeneous": True},
        },
        trainer={"max_epochs": 1},
    )
    assert main(["fit", "-c", str(config)]) == 0
    run = tmp_path / "runs" / "tiny" / "version_0"
    assert "recall_at_10" in (run / "results.json").read_text()
    saved = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    assert (saved["weights"], saved["homogeneous"], len(saved["parts"])) == ([3.0, 1.0], True, 2)


# ---- two processes --------------------------------------------------------------------------


def draw(rank: int, replicas: int) -> list[list[str]]:
    """The batches of one process, by the loader of the data module itself."""
    data = mixed(
        weights=[1, 2, 1], samples=128, homogeneous=True, batch_size=8 // replicas, num_workers=1
    )

    class Placed:
        lightning_module = Named(Pair)
        distributed_sampler_kwargs = {"rank": rank, "num_replicas": replicas}  # noqa: RUF012

    trainer: Any = Placed()
    data.trainer = trainer
    return [list(batch["ids"]) for batch in data.train_dataloader()]


def draw_share(rank: int) -> list[list[str]]:
    return draw(rank, WORLD)


def test_two_processes_draw_the_global_batches_of_one(tmp_path: Path) -> None:
    alone = draw(0, 1)
    shared = run_in_processes(draw_share, tmp_path)
    assert len(alone) == 16
    for whole, *parts in zip(alone, *shared, strict=True):
        assert sorted(whole) == sorted(name for part in parts for name in part)
