"""What is watched is a real evaluation, and the second stage alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench import reranking
from bench.reranking import Noise, NoiseSearch, Outcome, check_alike, drawn, evaluation


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reranking, "QUERIES", 6)
    monkeypatch.setattr(reranking, "DEPTH", 5)


@pytest.mark.usefixtures("small")
def test_the_second_stage_reads_what_the_first_has_found() -> None:
    few, many = evaluation(4), evaluation(90)
    # A gallery may be smaller than the depth.
    assert (few.pairs, few.images) == (6 * 4, 4)
    assert few.time > 0 and few.memory >= 0
    assert many.pairs == 6 * 5 and 10 < many.images <= 30
    check_alike(many, evaluation(70))
    with pytest.raises(AssertionError, match="30 pairs were scored, and 24"):
        check_alike(many, few)


def test_vectors_are_functions_of_ids_and_pictures_are_drawn_when_asked_for() -> None:
    benchmark = NoiseSearch(images=20, queries=3, depth=2)
    both, second = drawn(benchmark.gallery)["vectors"], drawn(benchmark.gallery[1:2])["vectors"]
    assert torch.equal(both[1:2], second)
    assert not torch.equal(both[0], both[1])
    torch.testing.assert_close(both.norm(dim=1), torch.ones(20))
    one, other = Noise("1"), Noise("2")
    assert one.load().tobytes() == Noise("1").load().tobytes() != other.load().tobytes()
    assert [field.name for field in dataclasses.fields(one)] == ["id"]
    assert len({query.text for query in benchmark.queries}) == 3


def test_rows_tell_both_galleries(monkeypatch: pytest.MonkeyPatch) -> None:
    def pretended(_: object, images: int) -> Outcome:
        large = images == reranking.LARGE
        return Outcome(10.0 if large else 20.0, 3.0 if large else 2.0, 7, images // 2)

    monkeypatch.setattr(reranking, "in_own_process", pretended)
    memory, pixels, time = reranking.run()
    assert memory.ratio == 2 and time.ratio == pytest.approx(2 / 3)
    assert pixels.ours == memory.ours and set(pixels.reference) == {25_000 * 3 * 64**2 / (1 << 18)}
    assert "beside the vectors (49 MiB, here 2)" in memory.name
    assert "25,000 images read, here 1,000" in time.name
