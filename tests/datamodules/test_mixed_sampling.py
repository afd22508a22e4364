"""What is drawn from each part, in which batches and in which order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from cirlab.errors import UserError
from cirlab.records import SampleKey
from datamodules.mixed_sampling import shares
from tests.datamodules.mixtures import keys, part_of, parts_of, sampler


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


@pytest.mark.parametrize("homogeneous", [False, True])
def test_the_order_depends_on_seed_and_epoch_only(homogeneous: bool) -> None:
    first, again = (sampler(homogeneous=homogeneous) for _ in range(2))
    assert keys(first, 3) == keys(again, 3)
    assert keys(first, 3) != keys(first, 4)
    assert keys(first, 3) == keys(again, 3)
    assert keys(first, 3) != keys(sampler(homogeneous=homogeneous, seed=1), 3)
    assert first.order(3).tolist() == [key.index for key in keys(first, 3)]
    assert len(first) == len(keys(first, 3))


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
