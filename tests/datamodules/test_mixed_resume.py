"""A run over a mixture goes on where it was stopped, and with the same mixture only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cirlab.errors import UserError
from datamodules.joined import JoinedData, JoinedRecords
from datamodules.mixed import MixedData, MixedSamples
from datamodules.mixed_sampling import MixedLoader
from tests.datamodules.mixtures import LENGTHS, mixed, sampler
from tests.datamodules.toys import Numbers, NumbersData, ToyBenchmark, fit


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
