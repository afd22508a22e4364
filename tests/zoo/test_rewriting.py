from __future__ import annotations

import pytest

from cirlab.zoo.rewriting import Marks, mark

WANTED = "a small red star at the top, two rings, on the sea, at night"


@pytest.mark.parametrize(
    ("text", "marks", "right"),
    [
        (WANTED, (7, 7, 0), True),
        # Order and wording do not count.
        ("two rings, in the dark, on the water, a small red star at the top", (7, 7, 0), True),
        ("a red star, two rings, at night", (7, 4, 0), False),
        ("a large red star at the top, two rings, at sea, at night", (7, 6, 1), False),
        ("a small red star on the left, two rings, at sea by day", (7, 5, 2), False),
        ("a small red star at the top, a ring, at sea, at night", (7, 6, 1), False),
        ("a small red star at the top, two rings, two rings, at sea, at night", (7, 7, 1), False),
        ("", (7, 0, 0), False),
    ],
)
def test_what_is_named_and_what_is_invented(
    text: str, marks: tuple[int, int, int], right: bool
) -> None:
    found = mark(text, WANTED)
    assert found == Marks(*marks) and found.right == right


def test_of_several_things_of_one_shape_the_best_fitting_are_compared() -> None:
    wanted = "a large red star, a blue star at the top"
    assert mark("a blue star at the top, a large red star", wanted) == Marks(6, 6, 0)
    assert mark("a blue star, a large star", wanted).named == 4
