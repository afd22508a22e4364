from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cirlab.errors import UserError
from cirlab.prompts import ChosenPrompts
from cirlab.prompts.choice_cache import ChoiceCache
from cirlab.records import Query

OPTIONS: dict[str, str | None] = {"A": None, "B": "how many?"}


def cache_at(
    folder: Path, options: dict[str, str | None] | None = None, **settings: Any
) -> ChoiceCache:
    return ChoiceCache(folder / "choices.json", {"llm": "m"} | settings, options or OPTIONS)


def test_what_is_added_is_there_again(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    cache.read()
    cache.made_by("weights", "w")
    cache.add({"x": "B.", "\u00fc \ud800": "I would rather not"})
    cache.add({"z": "a"})
    again = cache_at(tmp_path)
    again.read()
    assert again == cache
    assert again.letters == {"x": "B", "\u00fc \ud800": "A", "z": "A"}
    # Which of the first option's texts were chosen so, and which not understood.
    assert again.not_understood == {"\u00fc \ud800": "I would rather not"}
    assert [path.name for path in tmp_path.iterdir()] == ["choices.json"]


def test_other_choosers_read_it(tmp_path: Path) -> None:
    cache_at(tmp_path).add({"x": "B", "y": "A"})
    chooser = ChosenPrompts(str(tmp_path / "choices.json"))
    assert chooser([Query("q", "y", ()), Query("r", "x", ())]) == [None, "how many?"]


@pytest.mark.parametrize(
    ("options", "settings", "problem"),
    [
        (None, {"llm": "n"}, 'were made with llm "m", but it is "n" now; name another file'),
        (None, {"system": "s"}, 'were made with system null, but it is "s" now'),
        ({"A": None, "B": "what?"}, {}, "were made among other prompts than those of the reg"),
        ({"B": "how many?", "A": None}, {}, "were made among other prompts"),
    ],
)
def test_choices_that_were_made_otherwise_are_refused(
    tmp_path: Path, options: dict[str, str | None] | None, settings: dict[str, str], problem: str
) -> None:
    cache_at(tmp_path).add({"x": "B"})
    with pytest.raises(UserError, match=problem):
        cache_at(tmp_path, options, **settings).read()


def test_other_weights_of_the_same_name_are_refused(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    cache.made_by("weights", "w")
    cache.add({"x": "B"})
    again = cache_at(tmp_path)
    again.read()
    again.made_by("weights", "w")
    with pytest.raises(UserError, match='were made with weights "w", but it is "v" now'):
        again.made_by("weights", "v")


def test_a_file_of_something_else_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    path.write_text(json.dumps({"x": "how many?"}))
    with pytest.raises(UserError, match="holds no choices of LLMChoice; name another file"):
        cache_at(tmp_path).read()
    assert json.loads(path.read_text()) == {"x": "how many?"}


def test_a_letter_that_is_no_option_is_refused(tmp_path: Path) -> None:
    cache_at(tmp_path).add({"x": "B"})
    path = tmp_path / "choices.json"
    path.write_text(path.read_text().replace('"x": "B"', '"x": "C"'))
    with pytest.raises(UserError, match="the choice 'C' is no option"):
        cache_at(tmp_path).read()
