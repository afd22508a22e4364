"""The folder format: a user's own images with JSON Lines beside them.

    root/images/...              any layout; paths in the files below are relative to root
    root/<split>/pairs.jsonl     {"image", "captions": [..]}
    root/<split>/composed.jsonl  {"id", "reference", "text" or "texts", "targets": [..],
                                  "exclude"?, "candidates"?, "category"?}
    root/<split>/facets.jsonl    {"id", "facet", "text", "prompt"?, "targets": [..], "exclude"?,
                                  "candidates"?}
    root/<split>/dialogues.jsonl {"id", "rounds": [first words, "question? answer", ..],
                                  "targets": [..]}
    root/<split>/caption_triplets.jsonl
                                 {"image", "caption", "instruction", "modified_caption"}
    root/<split>/gallery.txt     the pool that queries are ranked against, one path a line

Further fields are ignored. An image's id is its path. Composed queries and training records may
stand in files of other names, too.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cirlab.errors import UserError
from cirlab.reading.files import data_folder, read_text
from cirlab.reading.jsonl import JsonLines, Row
from cirlab.records import CaptionTriplet, FileImage, Pair


@dataclass(frozen=True)
class ComposedRow:
    """One line of composed.jsonl or its like; images are paths relative to the root."""

    id: str
    reference: str
    texts: tuple[str, ...]
    targets: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FacetRow:
    """One line of facets.jsonl; images are paths relative to the root."""

    id: str
    facet: str
    text: str
    targets: tuple[str, ...]
    prompt: str | None = None
    exclude: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DialogueRow:
    """One line of dialogues.jsonl; images are paths relative to the root.

    Attributes:
        id: unique within the file.
        rounds: what the dialogue began with, and one text for each further round.
        targets: every image that fits all that was said.
    """

    id: str
    rounds: tuple[str, ...]
    targets: tuple[str, ...]


class Folder:
    """One data folder.

    Args:
        root: the folder.
        prefix: put before every image id, where several folders are used together.
        images: folder that image paths are relative to, itself relative to root.

    Raises:
        UserError: root is empty or no folder.
    """

    def __init__(self, root: str, *, prefix: str = "", images: str = "") -> None:
        self.root = data_folder(root)
        self.prefix = prefix
        self.images = self.root / images

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.resolve().name

    def identity(self, split: str) -> str:
        """Tells galleries of different folders apart even if the folders' names are equal."""
        path = str(self.root.resolve())
        return f"{self.name}-{split}-{zlib.crc32(path.encode()):08x}"

    def image(self, path: str) -> FileImage:
        """An image by its path relative to the root, or to the folder of images."""
        return FileImage(id=f"{self.prefix}{path}", path=self.images / path)

    def rows(self, split: str, file: str) -> JsonLines:
        """The rows of root/<split>/<file>.

        Raises:
            UserError: split or file is missing, or the file has no row.
        """
        return self.rows_of(self._split(split) / file)

    def rows_of(self, path: str | Path) -> JsonLines:
        """The rows of a file, whose path may be relative to the root.

        Raises:
            UserError: the file is missing or has no row.
        """
        rows = JsonLines(self.root / path)
        if not len(rows):
            raise UserError(f"{rows.path} has no lines; write at least one record into it")
        return rows

    def gallery(self, split: str) -> list[str]:
        """The paths of gallery.txt, in its order.

        Raises:
            UserError: the file is missing, empty or not UTF-8, or names an image twice.
        """
        path = self._split(split) / "gallery.txt"
        if not path.is_file():
            raise UserError(f"there is no gallery {path}; list one image path a line in it")
        line_of: dict[str, int] = {}
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not (name := line.strip()):
                continue
            if name in line_of:
                raise UserError(
                    f"{path}, line {number}: {name} stands already in line {line_of[name]}; "
                    "remove one of them"
                )
            line_of[name] = number
        if not line_of:
            raise UserError(f"the gallery {path} is empty; list one image path a line in it")
        return list(line_of)

    def pair(self, row: Row) -> Pair:
        """A line of pairs.jsonl.

        Raises:
            UserError: a field is missing or of the wrong type.
        """
        return Pair(image=self.image(row.text("image")), captions=row.texts("captions"))

    def caption_triplet(self, row: Row) -> CaptionTriplet:
        """A line of caption_triplets.jsonl, as `cirlab.triplets` writes it.

        Raises:
            UserError: a field is missing or of the wrong type.
        """
        return CaptionTriplet(
            reference=self.image(row.text("image")),
            caption=row.text("caption"),
            text=row.text("instruction"),
            target_caption=row.text("modified_caption"),
            tags={"category": row.text("category")} if "category" in row else {},
        )

    def _split(self, split: str) -> Path:
        folder = self.root / split
        if not folder.is_dir():
            found = sorted(p.name for p in self.root.iterdir() if p.is_dir())
            raise UserError(
                f"there is no split {split!r} in {self.root} "
                f"(folders there: {', '.join(found) or 'none'}); correct the split's name"
            )
        return folder


def composed_row(row: Row) -> ComposedRow:
    """A line of composed.jsonl.

    Raises:
        UserError: a field is missing or of the wrong type, or a target is excluded.
    """
    texts = row.texts("texts") if "texts" in row else (row.text("text"),)
    parsed = ComposedRow(
        id=row.text("id"),
        reference=row.text("reference"),
        texts=texts,
        targets=row.texts("targets"),
        exclude=row.optional_texts("exclude") or (),
        candidates=row.optional_texts("candidates"),
        tags={"category": row.text("category")} if "category" in row else {},
    )
    _check_exclusion(parsed, row)
    return parsed


def facet_row(row: Row) -> FacetRow:
    """A line of facets.jsonl.

    Raises:
        UserError: a field is missing or of the wrong type, or a target is excluded.
    """
    parsed = FacetRow(
        id=row.text("id"),
        facet=row.text("facet"),
        text=row.text("text"),
        targets=row.texts("targets"),
        prompt=row.text("prompt") if row.get("prompt") is not None else None,
        exclude=row.optional_texts("exclude") or (),
        candidates=row.optional_texts("candidates"),
    )
    _check_exclusion(parsed, row)
    return parsed


def dialogue_row(row: Row) -> DialogueRow:
    """A line of dialogues.jsonl.

    Raises:
        UserError: a field is missing or of the wrong type.
    """
    return DialogueRow(id=row.text("id"), rounds=row.texts("rounds"), targets=row.texts("targets"))


def _check_exclusion(parsed: ComposedRow | FacetRow, row: Row) -> None:
    if contradiction := set(parsed.targets) & set(parsed.exclude):
        raise row.error(f"{min(contradiction)} is a target and excluded; remove it from one list")
