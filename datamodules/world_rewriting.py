"""Dialogues about the built-in world with the captions they come to, drawn when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cirlab.benchmarks.base import Benchmark
from cirlab.dialogue.rewrite_prompt import RewritePrompt, read_rewrite_prompt
from cirlab.errors import UserError
from cirlab.records import Conversation, SampleKey
from cirlab.world.dialogue import dialogue
from cirlab.world.language import caption
from cirlab.world.oracle import answer_to, askable
from cirlab.world.scene import Scene, draw_scene, generator
from cirlab.world.told import told
from datamodules.base import RetrievalData
from datamodules.checks import check_within
from datamodules.loading import TrainRecords


class WorldRewritingData(RetrievalData):
    """What a language model learns to rewrite: a dialogue, answered by one full caption.

    The caption says of the scene what was told so far, and nothing else (`cirlab.world.told`).

    Args:
        samples: dialogues per epoch, fresh ones each time.
        batch_size: dialogues per batch and process.
        eval_batch_size: not used where nothing is evaluated by retrieval.
        num_workers: loader processes per training process; 0 draws in the process itself.
        prompt: how the dialogue is put: full, bare, or a YAML file of their form.
        rounds: of a whole dialogue, from 1 to 10; a sample shows the first so many, each number
            alike often.
        listed: share of dialogues whose questions are taken from the list of those that can be
            asked of any scene, whatever was told; the others are the world's own.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the scenes, what is said of them, and their order.

    Raises:
        UserError: a number or a share is out of range, or there is no such prompt.
    """

    train_record = Conversation

    def __init__(
        self,
        samples: int,
        batch_size: int,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        prompt: str = "bare",
        rounds: int = 10,
        listed: float = 0.25,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
    ) -> None:
        check_within("rounds", rounds, 1, 10)
        if not 0 <= listed <= 1:
            raise UserError(f"data.init_args.listed is {listed}; choose a value from 0 to 1")
        super().__init__(batch_size, eval_batch_size, num_workers, benchmarks, seed)
        self.samples, self.rounds, self.listed = samples, rounds, listed
        self.prompt = read_rewrite_prompt(prompt)

    def train_dataset(self) -> TrainRecords:
        return WorldRewritings(self.samples, self.seed, self.prompt, self.rounds, self.listed)


@dataclass(frozen=True)
class WorldRewritings:
    """Conversations by key, each from its own seed."""

    samples: int
    seed: int
    prompt: RewritePrompt
    rounds: int
    listed: float

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, key: SampleKey) -> Conversation:
        rng = generator("train", self.seed, key.epoch, key.index)
        scene = draw_scene(rng)
        shown = int(rng.integers(1, self.rounds + 1))
        speak = _listed if rng.random() < self.listed else dialogue
        opening, rounds = speak(scene, rng, shown)
        said = [message["content"] for message in self.prompt.messages(opening, rounds)]
        said.append(told(scene, opening, rounds).caption())
        return Conversation(tuple(pairwise(said))[::2])


def _listed(scene: Scene, rng: np.random.Generator, rounds: int) -> tuple[str, tuple[str, ...]]:
    """Questions in random order that do not depend on what was told."""
    questions = [askable()[i] for i in rng.permutation(len(askable()))[:rounds]]
    said = tuple(f"{question} {answer_to(scene, question)}" for question in questions)
    return caption(scene, rng), said
