"""Descriptions name classes, arguments and files that there are, and the docs name them."""

from __future__ import annotations

import inspect
import io
import re
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console

from cirlab.data_check import __main__ as command
from cirlab.data_check.checking import build
from cirlab.data_check.descriptions import DATA_SETS, Part, data_set
from cirlab.errors import UserError

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
PARTS = [(name, part) for name, data in DATA_SETS.items() for part in data.parts]


@pytest.mark.parametrize(("name", "part"), PARTS, ids=lambda value: getattr(value, "name", value))
def test_classes_take_the_arguments_of_the_descriptions(
    tmp_path: Path, name: str, part: Part
) -> None:
    module, _, cls = part.class_path.rpartition(".")
    inspect.signature(getattr(import_module(module), cls)).bind(**part.arguments)
    made = build(part, tmp_path)
    assert str(tmp_path) in {str(value) for value in vars(made).values()}


def test_parts_of_a_data_set_have_different_names() -> None:
    for data in DATA_SETS.values():
        names = [part.name for part in data.parts]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_is_described_in_the_docs_and_by_the_command(name: str) -> None:
    data = data_set(name)
    out = io.StringIO()
    command.describe(data, None, Console(file=out, width=300))
    for text in (data.title, data.annotations, data.images, data.source):
        assert text in out.getvalue()
    assert re.search(rf"^\| `{name}` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(("name", "part"), PARTS, ids=lambda value: getattr(value, "name", value))
def test_what_a_part_needs_is_in_the_layout(tmp_path: Path, name: str, part: Part) -> None:
    patterns = [pattern for pattern, _ in DATA_SETS[name].layout]
    for path in part.needs:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
        if name != "folder":
            assert any(next(tmp_path.glob(pattern), None) for pattern in patterns), path


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean cirr"):
        data_set("crir")
