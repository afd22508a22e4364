from __future__ import annotations

import pytest

from cirlab.reading.packed import PackedTexts


def test_texts_come_back_unchanged() -> None:
    texts = ["one", "", "zwei äöü", "三", "line\nbreak"]
    packed = PackedTexts(iter(texts))
    assert list(packed) == texts
    assert packed[1:4] == texts[1:4]
    assert len(packed) == 5


@pytest.mark.parametrize("at", [-1, 2])
def test_there_is_nothing_outside(at: int) -> None:
    with pytest.raises(IndexError):
        PackedTexts(["a", "b"])[at]


def test_nothing_can_be_packed() -> None:
    assert list(PackedTexts([])) == []
