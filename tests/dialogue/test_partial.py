from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cirlab.dialogue.partial import PartialDialogue
from cirlab.errors import UserError

ROUNDS = ("big? no", "red? yes", "old? yes")


def drawn(partial: PartialDialogue, count: int, rounds: tuple[str, ...] = ROUNDS) -> Counter[str]:
    generator = np.random.default_rng(0)
    return Counter(partial.draw("a cat", rounds, generator) for _ in range(count))


def test_the_first_rounds_with_and_without_the_caption() -> None:
    """Every number of rounds is as frequent; a fifth of those with a round lack the caption."""
    found = drawn(PartialDialogue(), 8000)
    shown = ["", "big? no", "big? no, red? yes", "big? no, red? yes, old? yes"]
    whole = {", ".join(filter(None, ("a cat", text))): 0.2 for text in shown}
    expected = whole | dict.fromkeys(shown[1:], 0.05)
    expected["a cat"] = 0.25
    assert set(found) == set(expected)
    for text, share in expected.items():
        assert found[text] / 8000 == pytest.approx(share, abs=0.02), text


def test_the_caption_stays_where_nothing_else_is_left() -> None:
    always = PartialDialogue(caption_dropout=1.0)
    assert {text for text in drawn(always, 200) if "a cat" in text} == {"a cat"}
    assert set(drawn(always, 20, rounds=())) == {"a cat"}


def test_the_separator_and_a_dropout_of_nothing() -> None:
    found = drawn(PartialDialogue(separator=" [SEP] ", caption_dropout=0), 200)
    assert "a cat [SEP] big? no [SEP] red? yes" in found
    assert all(text.startswith("a cat") for text in found)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_dropout_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=r"caption_dropout is .* from 0 to 1"):
        PartialDialogue(caption_dropout=share)
