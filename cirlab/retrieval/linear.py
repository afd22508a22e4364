"""From vectors of images to those of the same images under a prompt, by one linear map.

Promptable embeddings (arXiv 2505.15877) looks at a few images with and without a prompt, and finds
the matrix W that takes each vector u without it to the vector v with it. Since q.(W u) is
(W^T q).u, a query that is multiplied by W^T is as near to all other images as if they had been
looked at again: galleries are encoded once, whatever they are asked for.

The paper's W is the least-squares solution of minimum norm, without offset. Its reference code
draws the images from the benchmark's own candidates, another sample in every run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from cirlab.errors import UserError

LinearMethod = Literal["least_squares", "ridge", "procrustes"]


def draw_sample(ids: Sequence[str], k: int, seed: int) -> list[int]:
    """Choose k images by their ids.

    The same images are chosen in any order of the ids and in any process, and of the same seed a
    smaller sample is a part of a larger one.

    Args:
        ids: of all images to choose from, each once.
        k: how many.
        seed: another one chooses other images.

    Returns:
        Positions in `ids`.

    Raises:
        UserError: k is below 1, or there are not so many images.
    """
    if not 1 <= k <= len(ids):
        raise UserError(
            f"the linear map is to be learned from {k} images of {len(ids)}; set its number of "
            f"samples from 1 to {len(ids)}"
        )

    def digest(at: int) -> bytes:
        return hashlib.sha256(f"{seed} {ids[at]}".encode()).digest()

    return sorted(range(len(ids)), key=digest)[:k]


def check_linear_map(method: LinearMethod, ridge: float) -> None:
    """Refuse what `linear_map` cannot do, before anything is encoded.

    Raises:
        UserError: there is no such method, the weight is no number, or ridge regression has none
            above 0.
    """
    methods = get_args(LinearMethod)
    if method not in methods:
        raise UserError(f"the linear map's method is {method!r}; choose {' or '.join(methods)}")
    if math.isnan(ridge):
        raise UserError(f"the linear map's ridge is {ridge}; set it to a number above 0")
    if method == "ridge" and not 0 < ridge < torch.inf:
        raise UserError(
            f"the linear map's ridge is {ridge}; set it above 0, or the method to least_squares"
        )


def linear_map(
    general: Tensor,
    prompted: Tensor,
    method: LinearMethod = "least_squares",
    ridge: float = 1e-3,
) -> Tensor:
    """The matrix W that takes vectors of images to those of the same images under a prompt.

    With U and V for the vectors as columns, K of them:

    - least_squares: W = V pinv(U), of all W with the least mean squared error the smallest one.
      With fewer images than dimensions it takes each u to its v, and what is at right angles to
      all u to nothing. Singular values that rounding to float32 alone can account for count as
      zero: of an image that is drawn twice, they would be inverted.
    - ridge: the least mean squared error plus `ridge` |W|^2; near 0 it is least squares. It is the
      method for vectors of fewer bits: those computed in bfloat16 hold larger errors of rounding,
      also where they are handed on as float32, and least squares inverts them.
    - procrustes: the orthogonal W with the least mean squared error (Schoenemann, 1966); where the
      images leave it open, as near to the identity as it can be.

    D and E are the same where one encoder gives both. Where they differ, this is what padding the
    shorter vectors with zeros comes to.

    Args:
        general: unit vectors of images. Shape (K, D).
        prompted: of the same images under a prompt. Shape (K, E).
        method: one of the three.
        ridge: weight of the squared entries of W; of that method only.

    Returns:
        Shape (E, D), float64.

    Raises:
        UserError: the method or `ridge` is unknown or out of range; a vector is not finite.
    """
    check_linear_map(method, ridge)
    if len(general) != len(prompted) or not len(general):
        raise ValueError(f"{len(general)} images without, and {len(prompted)} with a prompt")
    if not (general.isfinite().all() and prompted.isfinite().all()):
        raise UserError(
            "the encoder gave NaN or infinity for an image that the linear map is learned from: "
            "it has diverged; lower the learning rate, or use bf16 or float32 in place of float16"
        )
    u, v = general.detach().double(), prompted.detach().double()
    if method == "procrustes":
        return _procrustes(u, v)
    left, scales, right = torch.linalg.svd(u, full_matrices=False)
    if method == "ridge":
        inverse = scales / (scales.square() + ridge * len(u))
    else:
        counts = scales > _rounding(general) * scales[0]
        inverse = torch.where(counts, scales.reciprocal(), 0.0)
    return (v.T @ left) @ (inverse[:, None] * right)


def transform(queries: Tensor, w: Tensor) -> Tensor:
    """W^T q of each query q, to be compared with images that were looked at without a prompt.

    Not of unit length; the order of a query's images does not depend on it.

    Args:
        queries: shape (B, E).
        w: of `linear_map`. Shape (E, D).

    Returns:
        Shape (B, D), of the queries' type.
    """
    return (queries.to(w) @ w).to(queries)


def _rounding(vectors: Tensor) -> float:
    """Singular values up to this part of the largest one say nothing."""
    # Half precision would leave nothing; what is computed in it is as a rule handed on as float32.
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    return max(vectors.shape) * torch.finfo(dtype).eps


def _procrustes(u: Tensor, v: Tensor) -> Tensor:
    """The orthogonal matrix that takes u (K, D) to v (K, E) with the least squared error.

    What the images say nothing about, because there are fewer than dimensions, is turned as little
    as possible: without that, the linear algebra library would choose.
    """
    cross = v.T @ u
    left, scales, right = torch.linalg.svd(cross, full_matrices=True)
    # These are about the squares of those of u: only the rounding of this product is nothing.
    rounding = max(*u.shape, *v.shape) * torch.finfo(cross.dtype).eps
    known = int((scales > rounding * scales[0]).sum())
    rest_left, rest_right = left[:, known:], right[known:]
    identity = torch.eye(*cross.shape, dtype=cross.dtype, device=cross.device)
    turn, _, back = torch.linalg.svd(rest_left.T @ identity @ rest_right.T, full_matrices=False)
    return left[:, :known] @ right[:known] + (rest_left @ turn) @ (back @ rest_right)
