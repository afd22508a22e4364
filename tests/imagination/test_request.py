"""Names of pictures."""

from __future__ import annotations

import pytest

from cirlab.errors import UserError
from cirlab.imagination.request import Request, named


def test_a_picture_is_named_by_dialogue_round_and_number() -> None:
    assert Request("12", 3, "a star").picture(1) == "12_3_1"


@pytest.mark.parametrize("name", ["", "../a", "a_b", "a/b", ".a"])
def test_a_dialogue_that_cannot_name_a_file_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot name a picture"):
        Request(name, 0, "a star")


def test_a_negative_round_is_refused() -> None:
    with pytest.raises(UserError, match="round -1 of dialogue 4"):
        Request("4", -1, "a star")


def test_many_names_are_told_by_the_first() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named([str(i) for i in range(1203)]) == "0, 1, 2 and 1,200 more"
