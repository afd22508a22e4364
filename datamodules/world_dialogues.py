"""Dialogues about scenes of the built-in world, drawn when asked for, never on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cirlab.benchmarks.base import Benchmark
from cirlab.dialogue.partial import PartialDialogue
from cirlab.errors import UserError
from cirlab.records import Dialogue, Pair, SampleKey
from cirlab.world.dialogue import MAX_ROUNDS, dialogue
from cirlab.world.image import SceneImage
from cirlab.world.scene import Scene
from datamodules.base import RetrievalData
from datamodules.checks import check_within
from datamodules.dialogues import DialogueKind
from datamodules.loading import TrainRecords
from datamodules.world_series import MAX_SERIES, SceneSource


class WorldDialogueData(RetrievalData):
    """Dialogues about scenes that the seed decides, the same ones in every epoch.

    What is said is drawn anew each epoch. As the pictures stay, features of a frozen image side can
    be kept (`cache_features` of a method).

    Args:
        samples: scenes, and dialogues an epoch; a multiple of `series_size`.
        batch_size: training samples per batch and process, a multiple of `series_size`.
        eval_batch_size: gallery images or queries per batch and process.
        records: "partial_dialogues" gives pairs of the picture and, as its caption, the first
            rounds, their number uniform from 0 to all; "dialogues" gives whole ones.
        num_workers: loader processes per training process; 0 draws in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the scenes, what is said of them, and their order.
        series_size: this many samples of a batch show one scene and variations of it, 1 to 16, so
            that rounds are needed to tell them apart.
        rounds: questions with answers of a whole dialogue, after the caption.
        separator: of partial dialogues, stands between the texts.
        caption_dropout: of partial dialogues, the share of those with at least one round that lack
            the caption.
        fresh: draw new scenes in every epoch.
        image_size: side of the pictures in pixels.
        on_error: as for other data; the world's pictures never break.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        eval_batch_size: int,
        records: DialogueKind = "partial_dialogues",
        num_workers: int = 0,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
        series_size: int = 4,
        rounds: int = 10,
        separator: str = ", ",
        caption_dropout: float = 0.2,
        fresh: bool = False,
        image_size: int = 64,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        check_within("series_size", series_size, 1, MAX_SERIES)
        check_within("rounds", rounds, 1, MAX_ROUNDS)
        check_within("image_size", image_size, 16, 1024)
        super().__init__(
            batch_size,
            eval_batch_size,
            num_workers,
            benchmarks,
            seed,
            series=series_size,
            on_error=on_error,
        )
        self.train_record = {"dialogues": Dialogue, "partial_dialogues": Pair}[records]
        partial = PartialDialogue(separator, caption_dropout)
        self.partial = partial if records == "partial_dialogues" else None
        self.samples, self.rounds, self.fresh = samples, rounds, fresh
        self.image_size = image_size

    def train_dataset(self) -> TrainRecords:
        return WorldDialogues(self._source, self.rounds, self.partial)

    def train_images(self) -> list[SceneImage]:
        """Every picture that a training record can name.

        Raises:
            UserError: each epoch has others.
        """
        if self.fresh:
            raise UserError(
                "data.init_args.fresh: true draws new scenes in every epoch, of whose pictures "
                "nothing can be kept; set it to false, or cache_features to false"
            )
        source = self._source
        return [source.shown(SampleKey(0, index)) for index in range(self.samples)]

    @property
    def _source(self) -> SceneSource:
        return SceneSource(self.samples, self.seed, self.series, self.fresh, self.image_size)


@dataclass(frozen=True)
class WorldDialogues:
    """Dialogues by key, of which another one is held in every epoch.

    Attributes:
        source: what they are about.
        rounds: of a whole dialogue.
        partial: what a pair shows of its dialogue; None gives whole dialogues.
    """

    source: SceneSource
    rounds: int
    partial: PartialDialogue | None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Dialogue | Pair:
        image, rng = self.source.shown(key), self.source.generator(key, anew=True)
        if self.partial is None:
            caption, rounds = dialogue(image.scene, rng, self.rounds)
            return Dialogue(image=image, caption=caption, rounds=rounds)
        return Pair(image=image, captions=(self._part(self.partial, image.scene, rng),))

    def _part(self, partial: PartialDialogue, scene: Scene, rng: np.random.Generator) -> str:
        """Only what is shown is spoken, which is half of it on average."""
        shown, opened = partial.plan(self.rounds, rng)
        caption, rounds = dialogue(scene, rng, shown)
        return partial.join(caption if opened else None, rounds)
