from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.command.references import check_references, leaves, look_up, read_config
from cirlab.errors import UserError


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_leaves_and_look_up_are_each_others_inverse() -> None:
    content = {"a": {"b": 1, "c": [2, {"d": 3}]}, "e": None}
    found = dict(leaves(content))
    assert found == {"a.b": 1, "a.c[0]": 2, "a.c[1].d": 3, "e": None}
    assert all(look_up(content, key) == value for key, value in found.items())


@pytest.mark.parametrize("key", ["a.x", "a.c[2]", "a.c.d", "e.f", "a.b.c"])
def test_a_missing_key_equals_nothing(key: str) -> None:
    found = look_up({"a": {"b": 1, "c": [2]}, "e": None}, key)
    assert found not in (None, 1, 2)


def test_environment_and_references_are_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_ROOT", "photos")
    config = read_config(write(tmp_path, "a: ${oc.env:DATA_ROOT}/x\nb: ${c.d}\nc: {d: 4}"))
    assert config.resolved == {"a": "photos/x", "b": 4, "c": {"d": 4}}
    assert config.content["b"] == "${c.d}"


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_variable_is_named_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("DATA_ROOT", raising=False)
    if value is not None:
        monkeypatch.setenv("DATA_ROOT", value)
    path = write(tmp_path, "data:\n  root: ['${oc.env:DATA_ROOT}/x']")
    with pytest.raises(UserError, match=r"a\.yaml: data\.root\[0\] needs .* DATA_ROOT"):
        read_config(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1, 2", "not valid YAML"),
        ("a: 1\na: 2", "not valid YAML"),
        ("- 1\n- 2", "holds no keys"),
        ("a: ${b.c}", r"a cannot be resolved"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=rf"a\.yaml.*{says}") as caught:
        read_config(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_reference_that_another_file_leaves_stale_is_refused(tmp_path: Path) -> None:
    first = read_config(write(tmp_path, "dim: 8\nwidth: ${dim}"))
    second = read_config(write(tmp_path, "dim: 16", name="b.yaml"))
    with pytest.raises(UserError, match=r"a\.yaml: width refers to dim.* 8 .* 16 in .*b\.yaml"):
        check_references([first, second], {"dim": 16, "width": 8})


def test_a_reference_that_an_option_leaves_stale_is_refused(tmp_path: Path) -> None:
    first = read_config(write(tmp_path, "dim: 8\nwidth: ${dim}"))
    with pytest.raises(UserError, match="16 in the command line"):
        check_references([first], {"dim": 16, "width": 8})


@pytest.mark.parametrize("final", [{"dim": 8, "width": 8}, {"dim": 16, "width": 16}])
def test_a_reference_that_holds_is_left_alone(tmp_path: Path, final: dict[str, int]) -> None:
    check_references([read_config(write(tmp_path, "dim: 8\nwidth: ${dim}"))], final)
