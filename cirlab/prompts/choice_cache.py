"""The file that keeps an LLM's choices, and what they were made with.

    {"chosen_by": {..}, "options": {"A": prompt, ..}, "choices": {text: "A", ..},
     "not_understood": {text: answer, ..}}

It is replaced as a whole after each batch: what a kill leaves is complete, and is not asked again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cirlab.errors import UserError
from cirlab.prompts.asking import letter_of
from cirlab.prompts.chosen import CHOICES, OPTIONS, read_document
from cirlab.reading.atomic import whole_file
from cirlab.reading.jsonl import Row, shown

CHOSEN_BY, NOT_UNDERSTOOD = "chosen_by", "not_understood"


@dataclass
class ChoiceCache:
    """Choices on disk.

    Attributes:
        path: the file.
        settings: what decides the answers, as JSON keeps it.
        options: prompts by letter.
        letters: chosen so far, by text.
        not_understood: answers that name no option, by text; these texts have the first one.
    """

    path: Path
    settings: dict[str, Any]
    options: Mapping[str, str | None]
    letters: dict[str, str] = field(default_factory=dict)
    not_understood: dict[str, str] = field(default_factory=dict)

    def read(self) -> None:
        """Take over what the file holds, if there is one.

        Raises:
            UserError: it was made with other settings, or by something else.
        """
        if not self.path.exists():
            return
        row = read_document(self.path)
        if CHOSEN_BY not in row:
            raise UserError(
                f"{self.path} holds no choices of LLMChoice; name another file as cache, or read "
                "this one by ChosenPrompts"
            )
        self._check(row.object(CHOSEN_BY))
        self._check_options(row.object(OPTIONS))
        self.letters = {text: self._letter(row, text) for text in row.object(CHOICES)}
        self.not_understood = dict(row.object(NOT_UNDERSTOOD))

    def add(self, answers: Mapping[str, str]) -> None:
        """Keep what an LLM answered, by text; on disk when this returns."""
        for text, answer in answers.items():
            letter = letter_of(answer, self.options)
            if letter is None:
                self.not_understood[text] = answer
            self.letters[text] = letter or next(iter(self.options))
        document = {
            CHOSEN_BY: self.settings,
            OPTIONS: self.options,
            CHOICES: self.letters,
            NOT_UNDERSTOOD: self.not_understood,
        }
        with whole_file(self.path) as unfinished:
            unfinished.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    def made_by(self, name: str, value: str) -> None:
        """Add a setting that is known late.

        Raises:
            UserError: the file was made with another one.
        """
        self._check_setting(name, self.settings.setdefault(name, value), value)

    def _check(self, made_with: Row) -> None:
        for name, value in self.settings.items():
            self._check_setting(name, made_with.get(name), value)
        self.settings = dict(made_with)

    def _check_setting(self, name: str, made_with: object, value: object) -> None:
        if made_with != value:
            raise self._made_otherwise(f"with {name} {shown(made_with)}, but it is {shown(value)}")

    def _check_options(self, made_with: Row) -> None:
        # Letters name options by their order, which dictionaries do not compare.
        if list(made_with.items()) != list(self.options.items()):
            raise self._made_otherwise("among other prompts than those of the registry")

    def _made_otherwise(self, how: str) -> UserError:
        return UserError(
            f"the choices in {self.path} were made {how} now; name another file as cache, or "
            "delete this one"
        )

    def _letter(self, row: Row, text: str) -> str:
        letter = row.object(CHOICES).text(text)
        if letter not in self.options:
            raise row.error(f"the choice {letter!r} is no option; delete the file")
        return letter
