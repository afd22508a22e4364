"""What the gallery's images are looked at for, query by query: fixed rules.

A prompt is the question alone; how the model is asked it is a template of the method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from cirlab.errors import UserError
from cirlab.prompts.questions import check_question
from cirlab.prompts.registry import read_registry
from cirlab.records import Query


class PromptChooser(ABC):
    """A rule that gives each query its prompt."""

    @abstractmethod
    def __call__(self, queries: Sequence[Query]) -> list[str | None]:
        """For each query what images are looked at for; None: for nothing in particular.

        Only the first process calls it, so no collectives inside.

        Raises:
            UserError: a query to which the rule does not apply.
        """


class NoPrompt(PromptChooser):
    """Images are looked at for nothing in particular, whatever is asked."""

    def __call__(self, queries: Sequence[Query]) -> list[str | None]:
        return [None] * len(queries)


class FixedPrompt(PromptChooser):
    """One prompt for all queries.

    Args:
        prompt: e.g. "What is the weather like in this image?".

    Raises:
        UserError: it is empty, or a template.
    """

    def __init__(self, prompt: str) -> None:
        if not prompt.strip():
            raise UserError(
                "the prompt for all queries is empty; give it words, or choose NoPrompt"
            )
        check_question(prompt, "FixedPrompt")
        self.prompt = prompt.strip()

    def __call__(self, queries: Sequence[Query]) -> list[str | None]:
        return [self.prompt] * len(queries)


class PromptByFacet(PromptChooser):
    """The question of the facet that a query is tagged with.

    COCO-Facet's predefined prompts. The facet is part of the annotation: a user's query comes
    without it.

    Args:
        registry: gpt or human (COCO-Facet's facets), world (the built-in world's), or the path of a
            YAML file of the form of cirlab/prompts/gpt.yaml.

    Raises:
        UserError: there is no such registry.
    """

    def __init__(self, registry: str) -> None:
        self.registry = read_registry(registry)

    def __call__(self, queries: Sequence[Query]) -> list[str | None]:
        return [self.registry.question(self._facet(query)) for query in queries]

    def _facet(self, query: Query) -> str:
        if "facet" not in query.tags:
            raise UserError(
                f"query {query.id!r} is tagged with no facet, by which PromptByFacet finds its "
                "prompt; choose a benchmark of facets, or another way to choose prompts"
            )
        return query.tags["facet"]


class OwnPrompt(PromptChooser):
    """The prompt that the benchmark gives a query, e.g. the field `prompt` of facets.jsonl.

    A query without one has images looked at for nothing in particular.
    """

    def __call__(self, queries: Sequence[Query]) -> list[str | None]:
        for query in queries:
            if query.prompt is not None:
                check_question(query.prompt, f"query {query.id!r}")
        return [query.prompt for query in queries]
