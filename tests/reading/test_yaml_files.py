from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.errors import UserError
from cirlab.reading.yaml_files import read_mapping


def read(path: Path, text: str) -> dict[str, object]:
    path.write_text(text)
    return dict(read_mapping(path, "prompt", required=["user"], optional=["more"]))


def test_required_and_optional_keys_are_read(tmp_path: Path) -> None:
    assert read(tmp_path / "a.yaml", "user: ask") == {"user": "ask"}
    assert read(tmp_path / "a.yaml", "{user: ask, more: [1]}") == {"user": "ask", "more": [1]}


def test_a_mapping_may_take_over_another(tmp_path: Path) -> None:
    read_twice = read(tmp_path / "a.yaml", "user: &a {b: 1, c: 2}\nmore: {<<: *a, b: 3}")
    assert read_twice["more"] == {"b": 3, "c": 2}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("more: 1", "a.yaml holds more; give the keys user and, if you like, more"),
        ("{user: a, other: b}", "a.yaml holds user, other; give the keys user"),
        ("[1]", "a.yaml holds list; give"),
        ("", "a.yaml holds NoneType; give"),
        ("user: a\nuser: b", "a.yaml gives 'user' a second time in line 2; keep one of them"),
        ("user: [{a: 1, b: 2, a: 3}]", "a.yaml gives 'a' a second time in line 1"),
        ("user: [", "a.yaml is not valid YAML (while parsing"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / "a.yaml", text)
    assert problem in str(caught.value) and "\n" not in str(caught.value)
