from __future__ import annotations

import pytest

from cirlab.errors import UserError
from cirlab.records import SampleKey
from datamodules.sampling import ResumableLoader, TrainSampler, generator_for


def indices(sampler: TrainSampler) -> list[int]:
    return [key.index for key in sampler]


@pytest.mark.parametrize(("length", "batch_size"), [(40, 8), (43, 8), (8, 8), (9, 1)])
def test_an_epoch_draws_full_batches_without_repetition(length: int, batch_size: int) -> None:
    drawn = indices(TrainSampler(length, batch_size=batch_size, seed=0))
    assert len(drawn) == len(set(drawn)) == length // batch_size * batch_size
    assert set(drawn) <= set(range(length))


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    first = TrainSampler(40, batch_size=8, seed=1)
    again = TrainSampler(40, batch_size=8, seed=1)
    assert indices(first) == indices(again)
    other = TrainSampler(40, batch_size=8, seed=2)
    assert indices(first) != indices(other)
    again.set_epoch(1)
    assert indices(first) != indices(again)
    assert {key.epoch for key in again} == {1}


def test_the_remainder_differs_between_epochs() -> None:
    """Dropping an incomplete batch must not hide the same samples for ever."""
    sampler = TrainSampler(10, batch_size=8, seed=0)
    seen: set[int] = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        seen.update(indices(sampler))
    assert seen == set(range(10))


def test_series_stay_together_in_one_batch() -> None:
    drawn = indices(TrainSampler(50, batch_size=12, seed=0, series=4))
    for start in range(0, len(drawn), 12):
        batch = drawn[start : start + 12]
        for at in range(0, 12, 4):
            first = batch[at]
            assert first % 4 == 0
            assert batch[at : at + 4] == list(range(first, first + 4))


@pytest.mark.parametrize("series", [1, 2])
@pytest.mark.parametrize("replicas", [2, 4])
def test_global_batches_are_those_of_one_process(replicas: int, series: int) -> None:
    alone = indices(TrainSampler(101, batch_size=16, seed=3, series=series))
    parts = [
        indices(
            TrainSampler(
                101,
                batch_size=16 // replicas,
                seed=3,
                series=series,
                rank=rank,
                replicas=replicas,
            )
        )
        for rank in range(replicas)
    ]
    per_rank = 16 // replicas
    for batch in range(len(alone) // 16):
        whole = alone[batch * 16 : (batch + 1) * 16]
        dealt = [i for part in parts for i in part[batch * per_rank : (batch + 1) * per_rank]]
        assert sorted(dealt) == sorted(whole)
    assert {len(part) for part in parts} == {len(alone) // replicas}


class Keys:
    """A dataset that gives back the key it is asked for."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> SampleKey:
        return key


def loader(length: int = 40, workers: int = 0, **options: int) -> ResumableLoader:
    settings = {"batch_size": 8, "seed": 0, **options}
    sampler = TrainSampler(length, **settings)  # type: ignore[arg-type]
    return ResumableLoader(
        Keys(length),  # type: ignore[arg-type]
        batch_size=settings["batch_size"],
        sampler=sampler,
        num_workers=workers,
        collate_fn=list,
    )


def at_epoch(epoch: int, made: ResumableLoader) -> ResumableLoader:
    assert isinstance(made.sampler, TrainSampler)
    made.sampler.set_epoch(epoch)
    return made


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0)])
@pytest.mark.parametrize("batches", [0, 1, 4])
def test_a_restored_loader_gives_exactly_the_rest(batches: int, before: int, after: int) -> None:
    """Also with another number of workers, which have batches prepared ahead."""
    whole = at_epoch(2, loader(workers=before))
    running = iter(whole)
    for _ in range(batches):
        next(running)
    restored = loader(workers=after)
    restored.load_state_dict(whole.state_dict())
    if batches:
        assert restored.state_dict() == whole.state_dict()
    assert list(at_epoch(2, restored)) == list(running)
    assert len(list(restored)) == 5  # the epoch after that is whole


def test_the_first_iterator_is_made_before_the_epoch_is_known() -> None:
    """As Lightning does when it resumes."""
    whole = at_epoch(3, loader())
    running = iter(whole)
    next(running)
    restored = loader()
    restored.load_state_dict(whole.state_dict())
    first = iter(restored)
    assert list((at_epoch(3, restored), first)[1]) == list(running)


def test_a_place_in_another_epoch_leaves_this_one_whole() -> None:
    ended = loader()
    assert len(list(ended)) == 5
    restored = loader()
    restored.load_state_dict(ended.state_dict())
    assert list(at_epoch(1, restored)) == list(at_epoch(1, ended))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"length": 48}, "training samples of 40, this run has 48"),
        ({"batch_size": 4}, "batch_size 8, this run has 4"),
        ({"seed": 5}, "seed 0, this run has 5"),
        ({"series": 2}, "series 1, this run has 2"),
        ({"replicas": 2}, "processes of 1, this run has 2"),
    ],
)
def test_a_place_in_other_data_is_refused(changed: dict[str, int], named: str) -> None:
    with pytest.raises(UserError, match=named):
        loader(**changed).load_state_dict(loader().state_dict())


@pytest.mark.parametrize("length", [0, 7, 15])
def test_too_few_samples_for_a_batch_are_refused(length: int) -> None:
    with pytest.raises(UserError, match=f"holds {length} samples, less than one batch of 8"):
        TrainSampler(length, batch_size=8, seed=0, replicas=2)


def test_a_batch_that_would_tear_series_is_refused() -> None:
    with pytest.raises(UserError, match=r"batch_size 10 is not a multiple of .*series 4"):
        TrainSampler(100, batch_size=10, seed=0, series=4)


def test_randomness_of_a_sample_depends_on_seed_epoch_and_index() -> None:
    def draw(seed: int, epoch: int, index: int) -> int:
        return int(generator_for(seed, SampleKey(epoch, index)).integers(1 << 62))

    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({draw(0, 1, 2), draw(1, 1, 2), draw(0, 2, 2), draw(0, 1, 3), draw(0, 2, 1)}) == 5
