"""Questions that can be asked about any image, without knowing what was said of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cirlab.dialogue.faults import fault_of, is_same
from cirlab.errors import UserError
from cirlab.prompts.registry import read_registry
from cirlab.world.oracle import askable

#: The built-in world's; every other one lies in a file of the form of photographs.yaml.
WORLD = "world"
NAMED: dict[str, Path] = {"photographs": Path(__file__).parent / "photographs.yaml"}


def read_pool(name: str) -> tuple[str, ...]:
    """Questions by name (`world`, `photographs`), or from a YAML file, in their order.

    Raises:
        UserError: there is no such file, or a question of it cannot be put, or not twice.
    """
    if name == WORLD:
        return askable()
    path = NAMED.get(name, Path(name))
    if not path.is_file():
        known = ", ".join((WORLD, *NAMED))
        raise UserError(
            f"there are no questions {name!r}; give {known}, or the path of a YAML file"
        )
    questions = tuple(read_registry(str(path)).questions.values())
    for place, question in enumerate(questions):
        if fault := fault_of(question, asked=()):
            raise UserError(
                f"the question {question!r} in {path} cannot be put ({fault}); reword it"
            )
        if twin := next((q for q in questions[:place] if is_same(question, q)), None):
            raise UserError(
                f"the questions {twin!r} and {question!r} in {path} ask the same; remove one"
            )
    return questions


def least_asked(pool: Sequence[str], asked: Sequence[str]) -> str:
    """The question of a pool that was asked least often; of several, the first.

    Args:
        pool: at least one question.
        asked: in this dialogue.
    """
    return min(pool, key=lambda question: sum(is_same(question, other) for other in asked))
