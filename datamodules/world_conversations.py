"""Conversations about scenes of the built-in world, drawn when asked for, never on disk."""

from __future__ import annotations

from dataclasses import dataclass

from cirlab.benchmarks.base import Benchmark
from cirlab.errors import UserError
from cirlab.records import Conversation, SampleKey
from cirlab.triplets.prompt import CAPTION_MARK, PROMPT, answer
from cirlab.world.conversation import conversation
from cirlab.world.edits import world_answer
from cirlab.world.image import SceneImage
from cirlab.world.scene import draw_scene, generator
from datamodules.base import RetrievalData
from datamodules.loading import TrainRecords


class WorldConversationData(RetrievalData):
    """What a multimodal LLM learns to say: descriptions, answers, and changes to captions.

    Args:
        samples: conversations per epoch, fresh ones each time.
        batch_size: conversations per batch and process.
        eval_batch_size: gallery images or queries per batch and process.
        num_workers: loader processes per training process; 0 draws in the process itself.
        descriptions: share of the conversations with pictures that are one full description; the
            others are six questions and a description as people give one.
        editing: share of all conversations that are without a picture: a caption, an instruction
            that changes it, and the caption that results (`cirlab.triplets`).
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the scenes, what is said of them, and their order.
        image_size: side of the pictures in pixels.

    Raises:
        UserError: a share is out of range.
    """

    train_record = Conversation

    def __init__(
        self,
        samples: int,
        batch_size: int,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        descriptions: float = 0.5,
        editing: float = 0.15,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
        image_size: int = 64,
    ) -> None:
        for name, share in (("descriptions", descriptions), ("editing", editing)):
            if not 0 <= share <= 1:
                raise UserError(f"data.init_args.{name} is {share}; choose a value from 0 to 1")
        super().__init__(batch_size, eval_batch_size, num_workers, benchmarks, seed)
        self.samples, self.image_size = samples, image_size
        self.descriptions, self.editing = descriptions, editing

    def train_dataset(self) -> TrainRecords:
        return WorldConversations(
            self.samples, self.seed, self.descriptions, self.editing, self.image_size
        )


@dataclass(frozen=True)
class WorldConversations:
    """Conversations by key, each from its own seed."""

    samples: int
    seed: int
    descriptions: float
    editing: float
    image_size: int

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, key: SampleKey) -> Conversation:
        rng = generator("train", self.seed, key.epoch, key.index)
        if rng.random() < self.editing:
            edit = world_answer(rng)
            question = PROMPT.replace(CAPTION_MARK, edit.caption)
            return Conversation(((question, answer(edit.instruction, edit.modified_caption)),))
        scene = draw_scene(rng)
        image = SceneImage(f"{self.seed}-{key.epoch}-{key.index}", scene, self.image_size)
        return Conversation(conversation(scene, rng, self.descriptions), image)
