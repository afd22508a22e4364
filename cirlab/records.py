"""The vocabulary of the house: what a dataset, a benchmark and a method talk about.

Records are small, frozen and picklable. They carry no tensors: a method's collator turns
them into tensors inside the data loader's workers, so that any dataset serves any method.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import PIL.Image

from cirlab.errors import UserError


class SampleKey(NamedTuple):
    """What a training sampler hands to a dataset.

    A dataset derives all its randomness from the key and its own seed, never from a global
    generator: the generator of a loader worker is restored by nobody when a run resumes.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # a tuple has a method of that name


@dataclass(frozen=True)
class Image(ABC):
    """One image, known by an id that is unique within its gallery or dataset."""

    id: str

    @property
    def version(self) -> str:
        """Tells images of one id apart between runs and datasets, without loading; may be empty."""
        return ""

    @abstractmethod
    def load(self) -> PIL.Image.Image:
        """Decode the image as RGB.

        Raises:
            UserError: it is missing or does not decode; the sentence names it.
        """


@dataclass(frozen=True)
class FileImage(Image):
    """An image file on disk."""

    path: Path

    @property
    def part(self) -> str:
        """Names what is shown of the file; empty where it is all of it."""
        return ""

    def load(self) -> PIL.Image.Image:
        if not self.path.is_file():
            raise UserError(f"image {self.id!r} is missing: there is no file {self.path}")
        return _decode(self.path.read_bytes(), name=str(self.path))


@dataclass(frozen=True)
class EncodedImage(Image):
    """The bytes of an image file, as a webdataset shard holds them."""

    data: bytes = field(repr=False)

    @property
    def version(self) -> str:
        return short_hash(self.data)

    def load(self) -> PIL.Image.Image:
        return _decode(self.data, name=self.id)


@dataclass(frozen=True)
class DecodedImage(Image):
    """Pixels already in memory, so that nothing is decoded twice."""

    pixels: PIL.Image.Image = field(repr=False, compare=False)

    @property
    def version(self) -> str:
        return short_hash(self.pixels.tobytes())

    def load(self) -> PIL.Image.Image:
        return self.pixels


def short_hash(data: bytes) -> str:
    """Of what an image shows."""
    return hashlib.sha256(data).hexdigest()[:16]


def _decode(data: bytes, *, name: str) -> PIL.Image.Image:
    try:
        return PIL.Image.open(io.BytesIO(data)).convert("RGB")
    # Pillow raises many types for broken files, SyntaxError and struct.error among them.
    except Exception as error:
        raise UserError(
            f"image {name} does not decode ({error}); repair or remove it, "
            "or set on_error: skip to leave such images out and have them counted"
        ) from error


@dataclass(frozen=True)
class Caption:
    """A text of a gallery, where images look for their captions."""

    id: str
    text: str


#: What a gallery holds.
Item = Image | Caption


@dataclass(frozen=True)
class Pair:
    """An image and what people said of it (image-caption data, CoLLM section 3).

    Attributes:
        captions: each by itself tells the image.
        also_correct: ids of further images that they tell, which are no negatives of them.
    """

    image: Image
    captions: tuple[str, ...]
    also_correct: tuple[str, ...] = ()


@dataclass(frozen=True)
class Triplet:
    """A composed training sample: reference image, change, target image.

    Attributes:
        texts: one or several short modification texts that may be combined (MTCIR has
            about five per pair; CoLLM section 4).
        target_caption: a caption of the target where the data has one (InstructCIR).
        also_correct: ids of further correct targets, which are no negatives of this query.
    """

    reference: Image
    texts: tuple[str, ...]
    target: Image
    target_caption: str | None = None
    also_correct: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CaptionTriplet:
    """A picture, an instruction, and what they lead to in words alone (InstructCIR, stage 2).

    Attributes:
        reference: the picture.
        caption: of the reference; wrong for what the instruction leads to.
        text: the instruction.
        target_caption: of what it leads to, of which there need be no picture.
    """

    reference: Image
    caption: str
    text: str
    target_caption: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TextPair:
    """Two texts that mean the same image, for the text side of an embedding LLM.

    Attributes:
        query: a caption, or a caption with a change to it.
        target: another caption of that image.
    """

    query: str
    target: str


@dataclass(frozen=True)
class Conversation:
    """What somebody asks and somebody answers, of a picture or of none (LLaVA's tuning data).

    Attributes:
        turns: question and answer each.
        image: what is spoken of.
    """

    turns: tuple[tuple[str, str], ...]
    image: Image | None = None


@dataclass(frozen=True)
class PromptedPair:
    """An image, what it is looked at for, and what is then said of it (VLM2Vec's training data).

    Attributes:
        image: what is looked at.
        text: what somebody who searches for it says.
        prompt: what matters, e.g. a question; None: nothing in particular.
    """

    image: Image
    text: str
    prompt: str | None = None


@dataclass(frozen=True)
class LabelledImage:
    """An image and what each cell of a grid over it shows (token labelling, arXiv 2104.10858).

    Attributes:
        image: what is labelled.
        labels: a facet's label of every cell, in reading order; -1 where there is none.
    """

    image: Image
    labels: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Dialogue:
    """An image and how people found it by talking (VisDial, ChatIR).

    Attributes:
        image: what is spoken of.
        caption: what the dialogue began with.
        rounds: one text for each further round, "question? answer".
        also_correct: ids of further images that all of it is true of.
    """

    image: Image
    caption: str
    rounds: tuple[str, ...]
    also_correct: tuple[str, ...] = ()


@dataclass(frozen=True)
class Query:
    """One query of a benchmark.

    Attributes:
        id: unique within the benchmark.
        text: the query's words; empty for a query by image alone.
        image: the reference image, if the query has one.
        rounds: of a dialogue, what it began with and one text for each round, "question? answer";
            `text` is what the benchmark makes of them.
        targets: ids of all correct gallery images, the principal one first; none where the
            benchmark's answers are held back.
        exclude: ids that are never ranked for this query (the reference, where the protocol
            removes it). Exclusion is by id, never by position.
        candidates: ids of the query's own gallery (GeneCIS, COCO-Facet); None ranks the
            whole gallery.
        subset: ids of a look-alike group that is ranked in addition (CIRR's R_subset).
        prompt: what the gallery's images are to be looked at for, by methods that can.
        tags: what results are broken down by (category, style, facet, round ...).
    """

    id: str
    text: str
    targets: tuple[str, ...]
    image: Image | None = None
    exclude: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None
    subset: tuple[str, ...] | None = None
    rounds: tuple[str, ...] = ()
    prompt: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
