"""COCO and Flickr30k captions in Karpathy's split (arXiv 1412.2306), searched in both directions.

Read from the files that BLIP's loaders read (arXiv 2201.12086, section 5.1; salesforce/BLIP,
`coco_karpathy_{val,test}.json` and `flickr30k_{val,test}.json`): a list of
{"image": path, "caption": [five texts]}. An image's id is its whole path. (BLIP's captioning loader
makes an id by `str.strip(".jpg")`, which also strips letters of the name.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from cirlab.benchmarks.base import Benchmark, TargetRanks, check_rerank_depth
from cirlab.benchmarks.captions import TEMPLATES, CaptionTemplate, captions_of, image_query
from cirlab.metrics import mean_rank, recalls
from cirlab.reading.json_files import JsonArray
from cirlab.reading.jsonl import unique
from cirlab.reading.official import DataRoot, check_choice, check_size
from cirlab.records import Pair, Query

#: Images by file: COCO's val and test have 5,000 each (arXiv 1412.2306, section 4). Flickr30k's
#: numbers could not be verified.
PUBLISHED_IMAGES = {"coco_karpathy_val.json": 5000, "coco_karpathy_test.json": 5000}


class KarpathyTextToImageRules(Benchmark):
    """A caption finds its image; no other image is correct, however well it fits."""

    kind = "text"

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/5/10 and mean rank."""
        return recalls(ranks.targets, (1, 5, 10)) | {"mean_rank": mean_rank(ranks.targets)}


class KarpathyImageToTextRules(Benchmark):
    """An image finds any of its captions among those of all images."""

    kind = "image"

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/5/10 and mean rank of each image's best caption."""
        return recalls(ranks.targets, (1, 5, 10)) | {"mean_rank": mean_rank(ranks.targets)}


class _Karpathy(Benchmark):
    """What both directions share: file, images and options."""

    direction: ClassVar[str]

    def __init__(
        self,
        root: str,
        annotations: str = "coco_karpathy_test.json",
        name: str | None = None,
        images: str = "{path}",
        caption_template: CaptionTemplate = "as_is",
        rerank_depth: int | None = None,
        official: bool = True,
    ) -> None:
        check_choice("caption_template", caption_template, tuple(TEMPLATES))
        self.root = root
        self.annotations = annotations
        self.name = name or f"{Path(annotations).stem}_{self.direction}"
        self.images = images
        self.caption_template = caption_template
        self.query_template = TEMPLATES[caption_template].pattern
        self.rerank_depth = check_rerank_depth(rerank_depth)
        self.official = official

    @property
    def gallery_id(self) -> str:
        return self._data.identity(self.annotations, self.direction)

    @property
    def _data(self) -> DataRoot:
        return DataRoot(self.root, self.images, fields=("path", "file"))

    def _pairs(self) -> list[Pair]:
        """Every image with its captions, as a model reads them.

        Raises:
            UserError: the file is missing, malformed, names an image twice, or has another number
                of images than is published.
        """
        data = self._data
        path = data.folder / self.annotations
        template = TEMPLATES[self.caption_template]
        rows = unique(
            JsonArray(path),
            lambda row: f"the image {row.text('image')!r}",
            "join their captions in one record",
        )
        pairs = [
            Pair(
                image=data.image_at(row.text("image")),
                captions=tuple(map(template.text, row.texts("caption"))),
            )
            for row in rows
        ]
        published = PUBLISHED_IMAGES.get(path.name) if self.official else None
        check_size("images", len(pairs), published, path)
        return pairs


class KarpathyTextToImage(_Karpathy, KarpathyTextToImageRules):
    """COCO or Flickr30k, caption to image: one query for each caption, all images are the pool.

    Args:
        root: folder with annotations and images.
        annotations: file below it, with {"image", "caption": [..]} for each image.
        name: of the results; null takes the file's name and "_text_to_image".
        images: path of an image below the root; {path} is what the annotations say, {file} its
            last part.
        caption_template: what a model reads of a caption: "as_is", or "blip": lower case, without
            punctuation, at most 30 words, as BLIP's loaders make it and its numbers need.
        rerank_depth: this many of each query's best images are put in order again by the
            method's second stage (BLIP: 256 for COCO, 128 for Flickr30k); null: no second stage.
        official: refuse files of COCO whose number of images is not the published one.

    Raises:
        UserError: there is no such template, or rerank_depth is below 1.
    """

    direction = "text_to_image"

    def setup(self) -> None:
        pairs = self._pairs()
        self.gallery = [pair.image for pair in pairs]
        self.queries = [
            Query(id=caption.id, text=caption.text, targets=(pair.image.id,))
            for pair in pairs
            for caption in captions_of(pair)
        ]


class KarpathyImageToText(_Karpathy, KarpathyImageToTextRules):
    """COCO or Flickr30k, image to caption: one query for each image, all captions are the pool.

    Args:
        root: folder with annotations and images.
        annotations: file below it, with {"image", "caption": [..]} for each image.
        name: of the results; null takes the file's name and "_image_to_text".
        images: path of an image below the root; {path} is what the annotations say, {file} its
            last part.
        caption_template: what a model reads of a caption, here of the pool: "as_is", or "blip":
            lower case, without punctuation, at most 30 words, as BLIP's loaders make it and its
            numbers need.
        rerank_depth: this many of each query's best captions are put in order again by the
            method's second stage (BLIP: 256 for COCO, 128 for Flickr30k); null: no second stage.
        official: refuse files of COCO whose number of images is not the published one.

    Raises:
        UserError: there is no such template, or rerank_depth is below 1.
    """

    direction = "image_to_text"

    @property
    def gallery_id(self) -> str:
        return f"{super().gallery_id}-{self.caption_template}"

    def setup(self) -> None:
        pairs = self._pairs()
        self.gallery = [caption for pair in pairs for caption in captions_of(pair)]
        self.queries = [image_query(pair) for pair in pairs]
