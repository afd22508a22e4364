"""A method that looks at images for what queries ask about, by vectors that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from cirlab.errors import UserError
from cirlab.records import Image, Item, Query, Triplet
from lightning_modules.base import RetrievalModule
from lightning_modules.learner import Inputs
from tests.callbacks.lookup import (
    NAMES,
    numbers_of_images,
    numbers_of_queries,
    numbers_of_triplets,
    vectors,
)

#: Of queries 0, 1, 2, 3 and so on, in turn.
PROMPTS = ("which colour?", None, "which place?")


def tables(prompts: Sequence[str | None] = PROMPTS) -> dict[str | None, torch.Tensor]:
    """What image n looks like for each prompt, in row n. Shape (100, 8) each."""
    return {prompt: vectors(100, 10 + seed) for seed, prompt in enumerate(prompts)}


class LookingModule(RetrievalModule):
    """Looks vectors up, those of images by prompt.

    Args:
        prompts: of the queries, in turn.
        seen: what images look like for each prompt, by default `tables(prompts)`.
        parts: give the vectors of the parts of queries, too.
        own_space: rank the parts in a gallery space of their own.
        refused: the number of a query that needs a prompt, but has none.

    Attributes:
        asked: how often it was asked for the prompts of a benchmark's queries.
        looked: prompts and what was needed, of each call; shape (V, B), bool.
    """

    train_record = Triplet
    reranks = True
    query_kinds = frozenset({"composed"})

    def __init__(
        self,
        prompts: Sequence[str | None] = PROMPTS,
        seen: Mapping[str | None, torch.Tensor] | None = None,
        parts: bool = True,
        own_space: bool = False,
        refused: int | None = None,
    ) -> None:
        super().__init__(torch.optim.AdamW, None)
        self.prompts, self.seen = prompts, dict(seen or tables(prompts))
        self.parts, self.own_space, self.refused = parts, own_space, refused
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows = {name: vectors(100, seed) for seed, name in enumerate(NAMES)}
        self.asked = 0
        self.looked: list[tuple[tuple[str | None, ...], torch.Tensor]] = []

    def train_collator(self) -> Callable[[Sequence[Any]], Inputs]:
        return numbers_of_triplets

    def image_collator(self) -> Callable[[Sequence[Image]], Inputs]:
        return numbers_of_images

    def query_collator(self) -> Callable[[Sequence[Query]], Inputs]:
        return numbers_of_queries

    def losses(self, batch: Inputs) -> dict[str, torch.Tensor]:
        return {"nothing": (self.weight * batch["number"]).sum()}

    def encode_images(self, inputs: Inputs, prompt: str | None = None) -> torch.Tensor:
        return self.seen[prompt][inputs["number"]]

    def encode_queries(self, inputs: Inputs) -> torch.Tensor:
        return self.rows["query"][inputs["number"]]

    def encode_baselines(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        names = NAMES[2:4] if self.parts else ()
        return {name: self.rows[name][inputs["number"]] for name in names}

    def encode_baseline_gallery(self, inputs: Inputs) -> torch.Tensor | None:
        return self.rows["baseline"][inputs["number"]] if self.own_space else None

    def prompts_for(self, queries: Sequence[Query]) -> Sequence[str | None]:
        self.asked += 1
        numbers = [int(query.text.split()[-1]) for query in queries]
        if self.refused in numbers:
            raise UserError(f"query number {self.refused} has no prompt; give it one")
        return [self.prompts[number % len(self.prompts)] for number in numbers]

    def encode_views(
        self, inputs: Inputs, prompts: Sequence[str | None], needed: torch.Tensor
    ) -> torch.Tensor:
        self.looked.append((tuple(prompts), needed))
        views = torch.stack([self.encode_images(inputs, prompt) for prompt in prompts])
        return views * needed[..., None]

    def rerank(
        self,
        queries: Sequence[Query],
        items: Sequence[Item],
        pairs: torch.Tensor,
        scores: torch.Tensor,
    ) -> torch.Tensor:
        rows = numbers_of_queries(queries)["number"][pairs[:, 0]]
        columns = torch.tensor([int(item.id.removeprefix("image")) for item in items])
        return torch.sin(rows * 7.0 + columns[pairs[:, 1]] * 3.0) + scores
