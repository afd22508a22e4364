"""GeneCIS: which of a few images resembles the reference in what a word names.

Vaze et al., 2023 (arXiv 2306.07969). Files and rules are those of
https://github.com/facebookresearch/genecis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import PIL.Image

from cirlab.benchmarks.base import Benchmark, QueryKind, TargetRanks
from cirlab.errors import UserError
from cirlab.metrics import recalls
from cirlab.reading.json_files import JsonArray
from cirlab.reading.jsonl import Row
from cirlab.reading.official import DataRoot, check_choice, check_size
from cirlab.records import FileImage, Query

Task = Literal["focus_attribute", "change_attribute", "focus_object", "change_object"]
TASKS: tuple[Task, ...] = ("focus_attribute", "change_attribute", "focus_object", "change_object")

#: Queries of a task, and images that each of them ranks, counted in the files of the object tasks.
#: Those of the attribute tasks could not be verified.
QUERIES: Mapping[Task, int] = {"focus_object": 1960, "change_object": 1960}
CANDIDATES: Mapping[Task, int] = {"focus_object": 15, "change_object": 15}

#: By which part of its size an object's box grows (datasets/vaw_dataset.py).
DILATION = 0.7


class GeneCISRules(Benchmark):
    """Recall in the query's own gallery; `macro_recall_at_1` over the tasks is the headline."""

    kind: ClassVar[QueryKind] = "composed"
    breakdowns: ClassVar[tuple[str, ...]] = ("task",)
    average_over: ClassVar[str | None] = "task"

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@1/2/3."""
        return recalls(ranks.targets, (1, 2, 3))


class GeneCIS(GeneCISRules):
    """GeneCIS as published: one task, or all four and their mean.

    A query ranks its target and its gallery, never the reference. The object tasks show whole
    images of COCO, the attribute tasks objects cut from those of Visual Genome. An image that a
    row names twice counts once: one row of change_object has its target in the gallery as well.

    Args:
        root: the data folder, with genecis/<task>.json.
        task: one of the four; null: all.
        name: in the results; null: genecis, or genecis_<task>.
        images_coco: path of an image of COCO 2017 Val below root; {id} is COCO's number.
        images_visual_genome: path of an image of Visual Genome below root; {id} is its number.
        official: refuse a number of queries or candidates that is not the published one.

    Raises:
        UserError: there is no such task.
    """

    def __init__(
        self,
        root: str,
        task: Task | None = None,
        name: str | None = None,
        images_coco: str = "val2017/{id:012d}.jpg",
        images_visual_genome: str = "VG_100K/{id}.jpg",
        official: bool = True,
    ) -> None:
        check_choice("task of GeneCIS", task, (*TASKS, None))
        self.root = root
        self.task = task
        self.name = name or (f"genecis_{task}" if task else "genecis")
        self.images_coco = images_coco
        self.images_visual_genome = images_visual_genome
        self.official = official

    @property
    def gallery_id(self) -> str:
        coco, visual_genome = self._data()
        return f"{coco.identity('genecis', self.task or 'all')}-{visual_genome.identity()}"

    def setup(self) -> None:
        gallery: dict[str, FileImage] = {}
        coco, visual_genome = self._data()
        self.queries = []
        for task in (self.task,) if self.task else TASKS:
            source = _Crops(visual_genome) if task.endswith("attribute") else _Photographs(coco)
            self.queries += self._queries(task, source, gallery)
        self.gallery = list(gallery.values())

    def _data(self) -> tuple[DataRoot, DataRoot]:
        coco, visual_genome = (
            DataRoot(self.root, images, fields=("id",))
            for images in (self.images_coco, self.images_visual_genome)
        )
        return coco, visual_genome

    def _queries(self, task: Task, source: _Source, gallery: dict[str, FileImage]) -> list[Query]:
        path = source.data.folder / "genecis" / f"{task}.json"
        rows = JsonArray(path)
        if self.official:
            check_size(f"queries of {task}", len(rows), QUERIES.get(task), path)
        return list(self._read(task, rows, source, gallery))

    def _read(
        self, task: Task, rows: Sequence[Row], source: _Source, gallery: dict[str, FileImage]
    ) -> Iterator[Query]:
        for number, row in enumerate(rows):
            named = [
                source.image(place) for place in (row.object("target"), *row.objects("gallery"))
            ]
            wanted = CANDIDATES.get(task)
            if self.official and wanted is not None and len(named) != wanted:
                raise row.error(
                    f"target and gallery are {len(named)} images, but {wanted} are published; get "
                    "the official file, or set official: false"
                )
            gallery |= {image.id: image for image in named}
            yield Query(
                id=f"{task}/{number}",
                text=row.text("condition"),
                image=source.image(row.object("reference")),
                targets=(named[0].id,),
                candidates=tuple(dict.fromkeys(image.id for image in named)),
                tags={"task": task},
            )


@dataclass(frozen=True)
class SquareCrop(FileImage):
    """An object cut from a photograph, as GeneCIS shows it.

    The box grows by `DILATION` of its width and height, to the left and to the top; where the
    image ends there, it grows to the right and to the bottom instead. It is cut to the image and
    padded with black to a square.

    Attributes:
        box: left, top, width and height of the object in pixels.
    """

    box: tuple[float, float, float, float]

    @property
    def part(self) -> str:
        return f"square {self.box} {DILATION}"

    def load(self) -> PIL.Image.Image:
        whole = super().load()
        left, top, right, bottom = _dilated(self.box, whole.size)
        if left >= right or top >= bottom:
            raise UserError(
                f"image {self.id!r}: the box {self.box} (left, top, width, height) lies outside "
                f"{self.path}, which is {whole.width} x {whole.height}; get the image again"
            )
        return _padded(whole.crop((left, top, right, bottom)))


def _dilated(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the grown box within an image of this width and height."""
    left, top = (max(0.0, box[i] - DILATION * box[i + 2]) for i in (0, 1))
    right, bottom = (
        min(size[i], start + (1 + DILATION) * box[i + 2]) for i, start in ((0, left), (1, top))
    )
    return round(left), round(top), round(right), round(bottom)


def _padded(image: PIL.Image.Image) -> PIL.Image.Image:
    """On a black square, in the middle."""
    side = max(image.size)
    square = PIL.Image.new(image.mode, (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


@dataclass(frozen=True)
class _Source(ABC):
    """Where the images of a task come from."""

    data: DataRoot

    @abstractmethod
    def image(self, row: Row) -> FileImage:
        """The image that a part of a row names."""


class _Photographs(_Source):
    def image(self, row: Row) -> FileImage:
        number = row.number("val_image_id")
        return self.data.image(f"coco/{number}", id=number)


class _Crops(_Source):
    def image(self, row: Row) -> FileImage:
        number, box = row.number("image_id"), _box(row)
        whole = self.data.image(f"visual_genome/{number}", id=number)
        told = ",".join(str(length) for length in box)
        return SquareCrop(id=f"{whole.id}[{told}]", path=whole.path, box=box)


def _box(row: Row) -> tuple[float, float, float, float]:
    match row.get("instance_bbox"):
        case [
            float() | int(),
            float() | int(),
            float() | int() as width,
            float() | int() as height,
        ]:
            if width > 0 and height > 0:
                left, top, width, height = row["instance_bbox"]
                return left, top, width, height
    raise row.wrong("instance_bbox", "left, top, width and height in pixels")
