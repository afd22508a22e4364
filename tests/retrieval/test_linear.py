from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import normalize

from cirlab.errors import UserError
from cirlab.retrieval.linear import LinearMethod, draw_sample, linear_map, transform
from cirlab.retrieval.ranking import pessimistic_ranks

METHODS: tuple[LinearMethod, ...] = ("least_squares", "ridge", "procrustes")
DIM = 16
IDS = [f"image {i}" for i in range(50)]


def unit(rows: int, seed: int, dim: int = DIM) -> torch.Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, dim, generator=numbers, dtype=torch.float64), dim=-1)


def rotation(seed: int = 0, dim: int = DIM) -> torch.Tensor:
    return torch.linalg.qr(unit(dim, seed, dim))[0]


def error(w: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> float:
    return float((u @ w.T - v).square().sum(dim=1).mean())


# ---- the map ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["least_squares", "procrustes"])
@pytest.mark.parametrize("count", [DIM, 5 * DIM])
def test_a_rotation_is_recovered_from_as_many_images_as_dimensions(
    method: LinearMethod, count: int
) -> None:
    turn, u = rotation(), unit(count, seed=1)
    torch.testing.assert_close(linear_map(u, u @ turn.T, method), turn, atol=1e-9, rtol=0)


@pytest.mark.parametrize("count", [1, 7, DIM - 1])
def test_fewer_images_than_dimensions_are_each_taken_to_their_own(count: int) -> None:
    u, v = unit(count, seed=1), unit(count, seed=2)
    w = linear_map(u, v)
    torch.testing.assert_close(u @ w.T, v, atol=1e-9, rtol=0)
    assert torch.linalg.matrix_rank(w) == count
    # The smallest of the many: what no image has a part in is taken to nothing.
    aside = unit(1, seed=3)
    aside = aside - aside @ torch.linalg.pinv(u) @ u
    torch.testing.assert_close(aside @ w.T, torch.zeros(1, DIM).double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_transformed_query_meets_images_as_the_query_meets_transformed_images(
    method: LinearMethod,
) -> None:
    w = linear_map(unit(10, seed=1), unit(10, seed=2), method)
    queries, images = unit(6, seed=3), unit(9, seed=4)
    torch.testing.assert_close(transform(queries, w) @ images.T, queries @ (images @ w.T).T)
    assert transform(queries.float(), w).dtype == torch.float32


def test_least_squares_has_the_least_error_of_the_three() -> None:
    u, v = unit(40, seed=1), unit(40, seed=2)
    least = error(linear_map(u, v), u, v)
    for method in ("ridge", "procrustes"):
        assert error(linear_map(u, v, method), u, v) > least + 1e-9
    nudged = linear_map(u, v) + 1e-3 * unit(DIM, seed=3)
    assert error(nudged, u, v) > least


@pytest.mark.parametrize("count", [7, 40])
def test_ridge_tends_to_least_squares_and_with_weight_to_nothing(count: int) -> None:
    u, v = unit(count, seed=1), unit(count, seed=2)
    torch.testing.assert_close(
        linear_map(u, v, "ridge", ridge=1e-13), linear_map(u, v), atol=1e-6, rtol=0
    )
    sizes = [float(linear_map(u, v, "ridge", ridge=r).norm()) for r in (1e-3, 1e-1, 10.0, 1e4)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 1e-3


def test_ridge_is_the_least_of_mean_error_and_size_together() -> None:
    u, v = unit(30, seed=1), unit(30, seed=2)
    w = linear_map(u, v, "ridge", ridge=0.02).requires_grad_()
    ((u @ w.T - v).square().sum(dim=1).mean() + 0.02 * w.square().sum()).backward()
    assert w.grad is not None and w.grad.abs().max() < 1e-12


@pytest.mark.parametrize("count", [5, 40])
def test_procrustes_is_orthogonal_and_no_other_turn_is_nearer(count: int) -> None:
    u, v = unit(count, seed=1), unit(count, seed=2)
    w = linear_map(u, v, "procrustes")
    torch.testing.assert_close(w @ w.T, torch.eye(DIM).double(), atol=1e-9, rtol=0)
    least = error(w, u, v)
    for seed in range(5):
        small = 1e-2 * unit(DIM, seed + 10)
        assert error(torch.linalg.matrix_exp(small - small.T) @ w, u, v) > least


@pytest.mark.parametrize(
    ("dtype", "off"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
def test_procrustes_recovers_a_turn_of_vectors_that_are_much_alike(
    dtype: torch.dtype, off: float
) -> None:
    # As encoders' are: a mean in common, and less and less in each further direction.
    decay = torch.logspace(0, -1.5, 64, dtype=torch.float64)
    u = normalize(6 * unit(1, seed=1, dim=64) + 5 * unit(500, seed=2, dim=64) * decay, dim=-1)
    assert 0.9 < (u @ u.T).mean() < 0.99
    turn = rotation(seed=3, dim=64)
    w = linear_map(u.to(dtype), (u @ turn.T).to(dtype), "procrustes")
    torch.testing.assert_close(w, turn, atol=off, rtol=0)


def test_procrustes_leaves_alone_what_the_images_say_nothing_about() -> None:
    u = unit(5, seed=1)
    torch.testing.assert_close(linear_map(u, u, "procrustes"), torch.eye(DIM).double())


def test_an_image_that_is_drawn_twice_changes_nothing() -> None:
    # As float32, the copies differ by rounding, which must not be blown up.
    u, v = unit(6, seed=1).float(), unit(6, seed=2).float()
    twice = torch.cat([u, u[:1] * (1 + 1e-7)]), torch.cat([v, v[:1]])
    assert linear_map(*twice).abs().max() < 10
    torch.testing.assert_close(linear_map(*twice), linear_map(u, v), atol=1e-4, rtol=0)


def test_encoders_of_other_widths_meet_as_if_padded_with_zeros() -> None:
    u, v = unit(12, seed=1, dim=10), unit(12, seed=2)
    w = linear_map(u, v)
    padded = linear_map(torch.cat([u, torch.zeros(12, 6)], dim=1), v)
    torch.testing.assert_close(w, padded[:, :10])
    assert padded[:, 10:].abs().max() < 1e-12


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_encoder_that_tells_nothing_apart_ranks_every_target_last(
    method: LinearMethod, dtype: torch.dtype
) -> None:
    u, v = unit(1, seed=1).to(dtype), unit(1, seed=2).to(dtype)
    w = linear_map(u.expand(20, -1), v.expand(20, -1), method)
    queries, gallery = unit(8, seed=3).to(dtype), u.expand(100, -1)
    scores = normalize(transform(queries, w), dim=-1) @ gallery.T
    targets = torch.arange(8)[:, None] * 10
    assert pessimistic_ranks(scores.float(), targets).tolist() == [[100]] * 8


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_encoder_that_has_diverged_is_refused(value: float) -> None:
    u, v = unit(4, seed=1), unit(4, seed=2)
    v[1, 2] = value
    for pair in ((u, v), (v, u)):
        with pytest.raises(UserError, match="gave NaN or infinity for an image"):
            linear_map(*pair)


@pytest.mark.parametrize(
    ("method", "ridge", "problem"),
    [
        ("lasso", 1.0, "method is 'lasso'; choose least_squares or ridge or procrustes"),
        ("ridge", 0.0, r"ridge is 0\.0; set it above 0"),
        ("ridge", -1.0, r"ridge is -1\.0; set it above 0"),
        ("least_squares", torch.nan, "ridge is nan; set it to a number above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(method: str, ridge: float, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        linear_map(unit(4, seed=1), unit(4, seed=2), method, ridge)  # type: ignore[arg-type]


def test_images_without_a_partner_are_a_defect() -> None:
    with pytest.raises(ValueError, match="4 images without, and 3 with"):
        linear_map(unit(4, seed=1), unit(3, seed=2))


# ---- the sample ---------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_the_order_of_the_ids() -> None:
    drawn = [IDS[at] for at in draw_sample(IDS, 10, seed=0)]
    assert len(set(drawn)) == 10
    assert drawn == [IDS[::-1][at] for at in draw_sample(IDS[::-1], 10, seed=0)]


def test_a_smaller_sample_is_part_of_a_larger_one_and_other_seeds_draw_others() -> None:
    assert draw_sample(IDS, 20, seed=0)[:5] == draw_sample(IDS, 5, seed=0)
    assert len({tuple(draw_sample(IDS, 5, seed)) for seed in range(20)}) == 20
    assert sorted(draw_sample(IDS, len(IDS), seed=3)) == list(range(len(IDS)))


def test_every_image_is_as_likely_as_the_others() -> None:
    counts = torch.zeros(len(IDS))
    for seed in range(500):
        counts[draw_sample(IDS, 10, seed)] += 1
    # 100 each on average, with a deviation of 9.
    assert 60 < counts.min() and counts.max() < 140


def test_another_process_draws_the_same() -> None:
    code = "from cirlab.retrieval.linear import *; print(draw_sample('abcdefghij', 4, 7))"
    # Its strings have other hashes than those of this process.
    salted = os.environ | {"PYTHONHASHSEED": "12345"}
    said = subprocess.run([sys.executable, "-c", code], env=salted, capture_output=True, check=True)
    assert said.stdout.decode().strip() == str(draw_sample("abcdefghij", 4, 7))


@pytest.mark.parametrize("k", [0, 51])
def test_a_sample_larger_than_what_there_is_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=f"from {k} images of 50; set .* from 1 to 50"):
        draw_sample(IDS, k, seed=0)
