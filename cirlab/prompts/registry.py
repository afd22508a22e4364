"""Which question images are looked at with, by the facet that a query is about.

Promptable embeddings (arXiv 2505.15877) has one question for each facet of COCO-Facet, in two
wordings, and two distractors that an LLM may choose beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cirlab.errors import UserError
from cirlab.prompts.questions import check_question
from cirlab.reading.jsonl import Row, shown
from cirlab.reading.yaml_files import read_mapping

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
        UserError: there is no such file, or it holds no questions, one facet twice, or a template.
    """
    path = NAMED.get(name, Path(name))
    if not path.is_file():
        raise UserError(
            f"there are no prompts {name!r}; give {', '.join(NAMED)}, or the path of a YAML file"
        )
    row = read_mapping(path, "registry", required=["questions"], optional=["distractors"])
    return Registry(name, _questions(row), _distractors(row))


def _questions(row: Row) -> dict[str, str]:
    held: Any = row["questions"]
    if not isinstance(held, dict) or not held or not all(isinstance(key, str) for key in held):
        raise row.error("questions must hold one question or more, each as facet: question")
    for facet, text in held.items():
        if not _is_text(text):
            raise row.error(
                f"the question of {facet!r} is {shown(text)}, but must be words; quote it or "
                "write one"
            )
        check_question(text, f"{row.where}, facet {facet!r}")
    return {facet: text.strip() for facet, text in held.items()}


def _distractors(row: Row) -> tuple[str | None, ...]:
    held: Any = row.get("distractors", [None])
    if not isinstance(held, list) or not all(text is None or _is_text(text) for text in held):
        raise row.error("distractors must be a list of questions, and null for none in particular")
    for text in held:
        check_question(text or "", f"{row.where}, distractors")
    return tuple(text if text is None else text.strip() for text in held)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
