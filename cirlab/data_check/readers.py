"""What lists the images of data sets that are no benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
from tqdm import tqdm

from cirlab.benchmarks import cirr, fashioniq
from cirlab.benchmarks.captions import captions_in
from cirlab.dialogue.files import dialogue_of, read_dialogues
from cirlab.errors import UserError
from cirlab.reading.folder import Folder, composed_row, dialogue_row, facet_row
from cirlab.reading.json_files import JsonArray
from cirlab.reading.jsonl import JsonLines, Row
from cirlab.reading.official import DataRoot
from cirlab.reading.tars import TarIndex
from cirlab.reading.visdial import VisDial
from cirlab.records import EncodedImage, FileImage, Image


def _images_of_pair(row: Row) -> tuple[str, ...]:
    row.texts("captions")
    return (row.text("image"),)


def _images_of_triplet(row: Row) -> tuple[str, ...]:
    parsed = composed_row(row)
    return (parsed.reference, *parsed.targets)


def _images_of_caption_triplet(row: Row) -> tuple[str, ...]:
    for name in ("caption", "instruction", "modified_caption"):
        row.text(name)
    return (row.text("image"),)


def _images_of_facet(row: Row) -> tuple[str, ...]:
    return facet_row(row).targets


def _images_of_dialogue(row: Row) -> tuple[str, ...]:
    return dialogue_row(row).targets


#: What a file's lines are, and the paths of the images that one names.
_LINES = {
    "pairs.jsonl": ("pairs", _images_of_pair),
    "composed.jsonl": ("composed", _images_of_triplet),
    "caption_triplets.jsonl": ("caption triplets", _images_of_caption_triplet),
    "facets.jsonl": ("facets", _images_of_facet),
    "dialogues.jsonl": ("dialogues", _images_of_dialogue),
}


class FolderTraining:
    """The training images of a user's own folder (`cirlab.reading.folder`).

    Attributes:
        kinds: the number of records in each file that is there.

    Args:
        root: the data folder.
        split: its subfolder.
    """

    gallery: Sequence[FileImage] = ()
    queries: Sequence[Any] = ()

    def __init__(self, root: str, split: str) -> None:
        self.root = root
        self.split = split
        self.kinds: dict[str, int] = {}

    def setup(self) -> None:
        folder = Folder(self.root)
        paths: dict[str, None] = {}
        self.kinds = {}
        for file, (kind, images_of) in _LINES.items():
            if (Path(self.root) / self.split / file).is_file():
                rows = folder.rows(self.split, file)
                self.kinds[kind] = len(rows)
                for row in rows:
                    paths |= dict.fromkeys(images_of(row))
        self.gallery = [folder.image(path) for path in paths]
        self.queries = range(sum(self.kinds.values()))


class CIRRTraining:
    """CIRR's training split.

    Attributes:
        needed: references and targets.

    Args:
        root: the data folder.
        images: path of an image below it, see `CIRR`.
    """

    gallery: Sequence[FileImage] = ()
    queries: Sequence[Any] = ()
    needed: Sequence[FileImage] = ()

    def __init__(self, root: str, images: str = "img_raw/{path}") -> None:
        self.root = root
        self.images = images

    def setup(self) -> None:
        images = cirr.CIRRImages(self.root, self.images, "train")
        pool = images.pool()
        rows = JsonArray(images.folder.folder / cirr.captions_file("train"))
        parsed = list(cirr.cirr_rows(rows, pool, answered=True))
        names = dict.fromkeys(n for row in parsed for n in (row.reference, row.target) if n)
        self.gallery, self.queries = list(pool.values()), parsed
        self.needed = [pool[name] for name in names]


class FashionIQTraining:
    """One category of Fashion-IQ's training split.

    Attributes:
        needed: references and targets; of the other images many are missing everywhere.

    Args:
        root: the data folder.
        category: dress, shirt or toptee.
        images: path of an image below root, see `FashionIQ`.
    """

    gallery: Sequence[FileImage] = ()
    queries: Sequence[Any] = ()
    needed: Sequence[FileImage] = ()

    def __init__(
        self, root: str, category: fashioniq.Category, images: str = "images/{name}.png"
    ) -> None:
        self.root = root
        self.category = category
        self.images = images

    def setup(self) -> None:
        data = DataRoot(self.root, self.images, fields=("name", "category"))
        names = fashioniq.listed_images(data.folder, self.category, "train")
        pool = {name: data.image(name, name=name, category=self.category) for name in names}
        path = fashioniq.captions_file(data.folder, self.category, "train")
        rows = fashioniq.fashioniq_rows(JsonArray(path), pool)
        self.gallery, self.queries = list(pool.values()), rows
        self.needed = [pool[n] for n in dict.fromkeys(n for row in rows for n in row.images)]


class ChatIRTraining:
    """All dialogues in ChatIR's format, released ones and others, with or without a search space.

    Args:
        root: with `dialogues/*.json`.
        images: path of an image below it, see `ChatIR`.
    """

    gallery: Sequence[FileImage] = ()
    queries: Sequence[Any] = ()

    def __init__(self, root: str, images: str = "{path}") -> None:
        self.root = root
        self.images = images

    def setup(self) -> None:
        data = DataRoot(self.root, self.images, fields=("path", "file"))
        files = sorted(data.folder.glob("dialogues/*.json"))
        names = [dialogue_of(row)[0] for file in files for row in read_dialogues(file)]
        self.gallery = [data.image_at(name) for name in dict.fromkeys(names)]
        self.queries = names


class KarpathyTraining:
    """The captions and images of BLIP's training files for COCO and Flickr30k.

    Args:
        root: the data folder.
        annotations: file below it.
        images: path of an image below root, see `KarpathyTextToImage`.
    """

    gallery: Sequence[FileImage] = ()
    queries: Sequence[Any] = ()

    def __init__(self, root: str, annotations: str, images: str = "{path}") -> None:
        self.root = root
        self.annotations = annotations
        self.images = images

    def setup(self) -> None:
        data = DataRoot(self.root, self.images, fields=("path", "file"))
        paths: dict[str, None] = {}
        count = 0
        rows = JsonArray(data.folder / self.annotations)
        for row in tqdm(rows, desc=self.annotations, delay=2, disable=None):
            count += len(captions_in(row))
            paths[row.text("image")] = None
        self.gallery = [data.image_at(path) for path in paths]
        self.queries = range(count)


class MtcirFiles:
    """The images that MTCIR's lines name, in a folder or in tar archives below the root.

    Args:
        root: with one or several `*.jsonl` and either images or `*.tar` archives.
        reference: field of the reference image's path.
        target: field of the target image's path.
    """

    gallery: Sequence[Image] = ()
    queries: Sequence[Any] = ()

    def __init__(self, root: str, reference: str = "image", target: str = "target_image") -> None:
        self.root = Path(root)
        self.fields = (reference, target)

    def setup(self) -> None:
        files = [JsonLines(path) for path in sorted(self.root.glob("*.jsonl"))]
        if not files:
            raise UserError(
                f"there is no .jsonl file in {self.root}; put MTCIR's annotations there"
            )
        names: dict[str, None] = {}
        for rows in files:
            for row in tqdm(rows, desc=str(rows.path), delay=2, disable=None):
                names |= dict.fromkeys(row.text(name) for name in self.fields)
        self.queries = range(sum(map(len, files)))
        tars = sorted(self.root.rglob("*.tar"))
        if not tars:
            self.gallery = [FileImage(id=name, path=self.root / name) for name in names]
            return
        index = TarIndex(tars)
        members = {index.name(member): member for member in range(len(index))}
        self.gallery = [ArchivedImage(name, index, members.get(name)) for name in names]


@dataclass(frozen=True)
class ArchivedImage(Image):
    """A member of a tar archive, read when it is decoded; None where there is none."""

    index: TarIndex = field(repr=False, compare=False)
    member: int | None

    def load(self) -> PIL.Image.Image:
        assert self.member is not None, "missing members are told before anything is decoded"
        return EncodedImage(id=self.id, data=self.index.read(self.member)).load()


class VisDialImages:
    """The images of VisDial's dialogues.

    The training dialogues speak about images of COCO's train2014 and val2014; the validation
    dialogues have images of their own.

    Args:
        root: with `visdial_1.0_<split>.json` and the folders of images.
        split: train or val.
    """

    gallery: Sequence[FileImage] = ()
    queries: Sequence[Any] = ()

    def __init__(self, root: str, split: str) -> None:
        self.root = Path(root)
        self.split = split

    def setup(self) -> None:
        dialogues = VisDial(self.root, self.split)
        self.gallery = [dialogues.image(index) for index in range(len(dialogues))]
        self.queries = range(len(dialogues))
