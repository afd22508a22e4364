"""Text-to-image retrieval in the built-in world: a caption finds its scene among others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from cirlab.benchmarks.base import Benchmark, TargetRanks, check_rerank_depth
from cirlab.errors import UserError
from cirlab.metrics import mean_rank, recalls
from cirlab.records import Query
from cirlab.world.image import SceneImage
from cirlab.world.language import caption, full_caption
from cirlab.world.scene import Signature, draw_scene, generator


class WorldTextToImage(Benchmark):
    """One caption of every scene; scenes of equal signature are all targets.

    Args:
        scenes: gallery images, and queries.
        captions: "full" says everything; "partial" leaves things out as people do, so that
            other scenes can be as right as the targets, which no metric then forgives.
        split: val or test; training never sees either's scenes.
        seed: another benchmark of the same kind.
        name: where it stands in the results.
        image_size: side of the pictures in pixels.
        rerank_depth: this many of each query's best images are put in order again by the method's
            second stage; null: no second stage.

    Raises:
        UserError: there are no scenes, or rerank_depth is below 1.
    """

    kind = "text"
    gallery: list[SceneImage]

    def __init__(
        self,
        scenes: int = 2000,
        captions: Literal["full", "partial"] = "full",
        split: Literal["val", "test"] = "val",
        seed: int = 0,
        name: str = "world_text_to_image",
        image_size: int = 64,
        rerank_depth: int | None = None,
    ) -> None:
        if scenes < 1:
            raise UserError(f"{name} has {scenes} scenes; set scenes to at least 1")
        self.scenes = scenes
        self.captions = captions
        self.split = split
        self.seed = seed
        self.name = name
        self.image_size = image_size
        self.rerank_depth = check_rerank_depth(rerank_depth)
        self.gallery = []
        self.queries = []

    @property
    def gallery_id(self) -> str:
        return f"world_scenes-{self.split}-{self.seed}-{self.scenes}-{self.image_size}"

    def setup(self) -> None:
        if self.gallery:
            return
        by_signature: defaultdict[Signature, list[str]] = defaultdict(list)
        texts: list[str] = []
        gallery: list[SceneImage] = []
        for number in range(self.scenes):
            # The 1 keeps these scenes apart from those of composed retrieval.
            rng = generator(self.split, self.seed, number, 1)
            scene = draw_scene(rng)
            image = SceneImage(f"{self.split}-{self.seed}-{number}", scene, self.image_size)
            gallery.append(image)
            by_signature[scene.signature()].append(image.id)
            texts.append(full_caption(scene) if self.captions == "full" else caption(scene, rng))
        self.queries = [
            self._query(image, text, by_signature[image.scene.signature()])
            for image, text in zip(gallery, texts, strict=True)
        ]
        self.gallery = gallery

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        return recalls(ranks.targets, (1, 5, 10)) | {"mean_rank": mean_rank(ranks.targets)}

    def _query(self, image: SceneImage, text: str, equal: list[str]) -> Query:
        others = (name for name in equal if name != image.id)
        return Query(id=image.id, text=text, targets=(image.id, *others))
