"""Training on a mixture: its shares, its broken records, its settings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from cirlab.cli import main
from cirlab.errors import UserError
from cirlab.records import Pair, SampleKey, Triplet
from datamodules.folder import FolderData
from datamodules.joined import JoinedRecords
from datamodules.loading import Sample
from datamodules.mixed import MixedData, MixedSamples
from datamodules.world import WorldData
from tests.datamodules.mixtures import LENGTHS, Named, mixed, part_of
from tests.datamodules.toys import Numbers, NumbersData, ToyBenchmark, ToyModule, fit, write_folder
from tests.tiny_run import tiny_experiment


def test_training_sees_the_shares_in_batches_of_one_part() -> None:
    data = mixed(weights=[1, 2, 1], samples=128, homogeneous=True)
    batches = [list(ids) for _, ids, _ in fit(data, Named(Pair), max_epochs=2).seen]
    labels = [{name.partition(":")[0] for name in batch} for batch in batches]
    assert all(len(label) == 1 for label in labels)
    found = Counter(label.pop() for label in labels[:16])
    assert found == {"0": 4, "1": 8, "2": 4}


def texts(module: ToyModule) -> list[list[str]]:
    return [list(batch) for _, batch, _ in module.seen]


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
