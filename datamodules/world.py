"""Training records from the built-in world: drawn when asked for, never on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cirlab.benchmarks.base import Benchmark
from cirlab.records import CaptionTriplet, Pair, PromptedPair, SampleKey, TextPair, Triplet
from cirlab.world.changes import Change
from cirlab.world.dialogue import QUESTIONS
from cirlab.world.edits import edit
from cirlab.world.language import caption, full_caption
from cirlab.world.phrasing import STYLES, Style, speak
from cirlab.world.properties import facet_values, has
from cirlab.world.scene import Scene, draw_scene, pick
from cirlab.world.series import FAMILY_SIZE, Member, composition_example, draw_members
from datamodules.base import RetrievalData
from datamodules.checks import check_within
from datamodules.loading import TrainRecords
from datamodules.world_series import MAX_SERIES, SceneSource

Kind = Literal["pairs", "triplets", "texts", "caption_triplets", "prompted"]
RECORDS: dict[Kind, type] = {
    "pairs": Pair,
    "triplets": Triplet,
    "texts": TextPair,
    "caption_triplets": CaptionTriplet,
    "prompted": PromptedPair,
}


class WorldData(RetrievalData):
    """Scenes that the seed decides, fresh in every epoch, in pictures and words.

    Args:
        records: "pairs" of a picture and captions; "triplets" of reference, one text for each
            change and target; "texts", pairs of texts that mean the same scene;
            "caption_triplets" of reference with its caption, one text for all changes, and the
            caption that results; "prompted", a picture, a question about one facet of it, and a
            text that tells it ("show an image at night").
        samples: records per epoch, a multiple of `series_size`.
        batch_size: training samples per batch and process, a multiple of `series_size`.
        eval_batch_size: gallery images or queries per batch and process.
        num_workers: loader processes per training process; 0 draws in the process itself.
        benchmarks: what validation and test evaluate; null trains without evaluation.
        seed: of the scenes, what is said of them, and their order.
        series_size: this many samples of a batch show one scene and variations of it, 1 to 16,
            so that an image's nearest neighbour is one that a change leads to; 1: unrelated
            scenes. Texts are never in series.
        captions_per_image: captions of a pair.
        full_captions: share of captions that say everything, in [0, 1]; the others leave things
            out as people do, those of caption triplets nothing that the text speaks of.
        compositions: share of text pairs whose query is a caption with a change to it, in
            [0, 1]; in the others two captions speak of one scene.
        unprompted: share of prompted records without a question, in [0, 1], whose text is a
            caption.
        fresh: draw new scenes in every epoch; false repeats the first epoch's.
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
        records: Kind = "pairs",
        num_workers: int = 0,
        benchmarks: list[Benchmark] | None = None,
        seed: int = 0,
        series_size: int = 4,
        captions_per_image: int = 1,
        full_captions: float = 0.3,
        compositions: float = 0.5,
        unprompted: float = 0.5,
        fresh: bool = True,
        image_size: int = 64,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        check_within("series_size", series_size, 1, MAX_SERIES)
        check_within("full_captions", full_captions, 0, 1)
        check_within("compositions", compositions, 0, 1)
        check_within("unprompted", unprompted, 0, 1)
        check_within("captions_per_image", captions_per_image, 1, None)
        check_within("image_size", image_size, 16, 1024)
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            benchmarks=benchmarks,
            seed=seed,
            series=1 if records == "texts" else series_size,
            on_error=on_error,
        )
        self.train_record = RECORDS[records]
        self.records: Kind = records
        self.samples = samples
        self.captions_per_image = captions_per_image
        self.full_captions = full_captions
        self.compositions = compositions
        self.unprompted = unprompted
        self.fresh = fresh
        self.image_size = image_size

    def train_dataset(self) -> TrainRecords:
        source = SceneSource(self.samples, self.seed, self.series, self.fresh, self.image_size)
        if self.records == "pairs":
            return WorldPairs(source, self.captions_per_image, self.full_captions)
        if self.records == "triplets":
            return WorldTriplets(source)
        if self.records == "caption_triplets":
            return WorldCaptionTriplets(source, self.full_captions)
        if self.records == "prompted":
            return WorldPrompted(source, self.full_captions, self.unprompted)
        return WorldTexts(source, self.full_captions, self.compositions)


@dataclass(frozen=True)
class WorldPairs:
    """Pictures with captions; the samples of a series are a scene and its variations."""

    source: SceneSource
    captions: int
    full_captions: float

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Pair:
        image, rng = self.source.shown(key), self.source.generator(key)
        captions = [_say(image.scene, self.full_captions, rng) for _ in range(self.captions)]
        return Pair(image=image, captions=tuple(captions))


@dataclass(frozen=True)
class WorldTriplets:
    """From one member of a family to another; the samples of a series share the family."""

    source: SceneSource

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Triplet:
        family = self.source.family(key)
        rng = self.source.generator(key)
        member, goal = _two_members(rng)
        reference = self.source.image(key, family.scene(member), member)
        target = self.source.image(key, family.scene(goal), goal)
        changes = family.between(member, goal)
        style = pick(rng, STYLES)
        return Triplet(
            reference=reference,
            texts=tuple(speak(change, reference.scene, style, rng) for change in changes),
            target=target,
            target_caption=full_caption(target.scene),
            tags=_tags(style, changes),
        )


@dataclass(frozen=True)
class WorldCaptionTriplets:
    """As `WorldTriplets`, with captions of reference and target instead of the target."""

    source: SceneSource
    full_captions: float

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> CaptionTriplet:
        family = self.source.family(key)
        rng = self.source.generator(key)
        member, goal = _two_members(rng)
        reference = self.source.image(key, family.scene(member), member)
        changes = family.between(member, goal)
        style = pick(rng, STYLES)
        full = rng.random() < self.full_captions
        said = edit(reference.scene, changes, style, rng, full=full)
        return CaptionTriplet(
            reference=reference,
            caption=said.caption,
            text=said.instruction,
            target_caption=said.modified_caption,
            tags=_tags(style, changes),
        )


@dataclass(frozen=True)
class WorldPrompted:
    """Pictures with a question about one facet, and what tells it."""

    source: SceneSource
    full_captions: float
    unprompted: float

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> PromptedPair:
        image, rng = self.source.shown(key), self.source.generator(key)
        scene = image.scene
        if rng.random() < self.unprompted:
            return PromptedPair(image, _say(scene, self.full_captions, rng))
        facet, values = pick(rng, list(facet_values().items()))
        # Of the numbers it may have none, where two things of one shape differ.
        told = [value.text for value in values if has(scene, value)]
        if not told:
            return PromptedPair(image, _say(scene, self.full_captions, rng))
        return PromptedPair(image, pick(rng, told), prompt=QUESTIONS[facet][0])


def _two_members(rng: np.random.Generator) -> tuple[Member, Member]:
    """A reference and a target of one family."""
    member = int(rng.random() * FAMILY_SIZE)
    (goal,) = draw_members(rng, 1, reference=member)
    return member, goal


def _tags(style: Style, changes: Sequence[Change]) -> dict[str, str]:
    categories = sorted({change.category for change in changes})
    return {"style": style, "category": "+".join(categories)}


@dataclass(frozen=True)
class WorldTexts:
    """Two texts of one scene: two captions, or a caption with a change, and the result."""

    source: SceneSource
    full_captions: float
    compositions: float

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> TextPair:
        rng = self.source.generator(key)
        if rng.random() < self.compositions:
            before, change, after = composition_example(rng)
            return TextPair(query=f"{before}, {change}", target=after)
        scene = draw_scene(rng)
        said = [_say(scene, self.full_captions, rng) for _ in range(2)]
        return TextPair(query=said[0], target=said[1])


def _say(scene: Scene, full_captions: float, rng: np.random.Generator) -> str:
    return full_caption(scene) if rng.random() < full_captions else caption(scene, rng)
