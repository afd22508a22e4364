"""Which question images are looked at with, by the facet that a query is about.

Promptable embeddings (arXiv 2505.15877) has one question for each facet of COCO-Facet, in two
wordings, and two distractors that an LLM may choose beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cirlab.errors import UserError
from cirlab.reading.files import read_text
from cirlab.reading.jsonl import Row

#: Registries by name: COCO-Facet's questions by GPT and by people, and the built-in world's.
NAMED: dict[str, Path] = {
    name: Path(__file__).parent / f"{name}.yaml" for name in ("gpt", "human", "world")
}


@dataclass(frozen=True)
class Registry:
    """The questions of some facets.

    Attributes:
        name: how it was asked for.
        questions: by facet, in the order of the file.
        distractors: what may be chosen beside them; None is nothing in particular.
    """

    name: str
    questions: Mapping[str, str]
    distractors: tuple[str | None, ...] = field(default=(None,))

    @property
    def options(self) -> tuple[str | None, ...]:
        """All that may be chosen, each once: the distractors, then the questions.

        An order of the file and never of a set, whose order differs between processes.
        """
        return tuple(dict.fromkeys([*self.distractors, *self.questions.values()]))

    def question(self, facet: str) -> str:
        """The question of a facet.

        Raises:
            UserError: it has none.
        """
        if facet not in self.questions:
            raise UserError(
                f"the prompts {self.name!r} have no question for the facet {facet!r} (they have "
                f"{', '.join(self.questions)}); add one to a registry of your own, or choose "
                "another registry"
            )
        return self.questions[facet]


def read_registry(name: str) -> Registry:
    """A registry by name (`NAMED`), or from a YAML file of the form of gpt.yaml.

    Raises:
        UserError: there is no such file, or it holds no questions.
    """
    path = NAMED.get(name, Path(name))
    if not path.is_file():
        raise UserError(
            f"there are no prompts {name!r}; give {', '.join(NAMED)}, or the path of a YAML file"
        )
    try:
        fields = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the prompts {path} are not valid YAML ({reason}); correct them"
        ) from error
    keys = {"questions", "distractors"}
    if not isinstance(fields, dict) or not {"questions"} <= set(fields) <= keys:
        found = ", ".join(map(str, fields)) if isinstance(fields, dict) else type(fields).__name__
        raise UserError(
            f"the prompts {path} hold {found or 'nothing'}; give the keys questions and, if you "
            "like, distractors"
        )
    row = Row(fields, str(path))
    return Registry(name, _questions(row), _distractors(row))


def _questions(row: Row) -> dict[str, str]:
    held: Any = row["questions"]
    if not isinstance(held, dict) or not held or not all(isinstance(key, str) for key in held):
        raise row.error("questions must hold one question or more, each as facet: question")
    questions = row.object("questions")
    return {facet: questions.text(facet).strip() for facet in held}


def _distractors(row: Row) -> tuple[str | None, ...]:
    held: Any = row.get("distractors", [None])
    if not isinstance(held, list) or not all(text is None or _is_text(text) for text in held):
        raise row.error("distractors must be a list of questions, and null for none in particular")
    return tuple(text if text is None else text.strip() for text in held)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
