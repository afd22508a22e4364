"""Read a part of a data set and compare it with its description."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from tqdm import tqdm

from cirlab.data_check.descriptions import ROOT, Part
from cirlab.data_check.readers import ArchivedImage
from cirlab.errors import UserError
from cirlab.reading.files import missing_files
from cirlab.records import Caption, FileImage, Image

#: What benchmarks suggest at the end of a refusal, and a check has no argument for.
_NOT_HERE = ", or set official: false"


class Readable(Protocol):
    """What a part's class has: a benchmark, or one of the `readers`.

    It may have `needed`, the images whose files are read, where these are not all of its gallery
    and its queries, and `kinds`, the number of records of each kind.

    Attributes:
        gallery: all images that the data set shows, or texts.
        queries: or training records.
    """

    gallery: Sequence[Any]
    queries: Sequence[Any]

    def setup(self) -> None:
        """Read the annotations."""


@dataclass(frozen=True)
class Finding:
    """What was found of one part.

    Attributes:
        passed_over: the first of its files that is not there, or the folder around it that is not
            there either; None if it was read.
        problem: why it could not be read.
        sizes: of queries and pools, one line each.
        deviations: those lines that are not as published.
        images: how many different ones it names.
        template: how their paths were made; None if that cannot be chosen.
        missing: ids of those that are not there.
        broken: ids of those that do not decode; None if it was not tried.
    """

    passed_over: str | None = None
    problem: str | None = None
    sizes: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    images: int = 0
    template: str | None = None
    missing: tuple[str, ...] = ()
    broken: tuple[str, ...] | None = None

    @property
    def complete(self) -> bool:
        """Whether an evaluation on this part would give a published benchmark's numbers."""
        return not (
            self.passed_over or self.problem or self.deviations or self.missing or self.broken
        )


def check(part: Part, root: Path, *, images: str | None = None, decode: bool = False) -> Finding:
    """Read one part from a folder.

    Args:
        part: its description.
        root: the data folder.
        images: template of an image's path below root; None: the official one.
        decode: read every image that is there.
    """
    absent = [path for path in part.needs if not any(root.glob(path))]
    if absent:
        return Finding(passed_over=_outermost(root, absent[0]))
    try:
        readable = build(part, root, images)
        readable.setup()
    except UserError as error:
        return Finding(problem=str(error).partition(_NOT_HERE)[0])
    needed = list(_needed(readable))
    missing = _missing(needed)
    gone = frozenset(missing)
    there = [image for image in needed if image.id not in gone]
    sizes = list(_sizes(part, readable))
    return Finding(
        sizes=tuple(line for line, _ in sizes),
        deviations=tuple(line for line, as_published in sizes if not as_published),
        images=len(needed),
        template=images or template(part),
        missing=missing,
        broken=tuple(_broken(there)) if decode else None,
    )


def _outermost(root: Path, path: str) -> str:
    """What is not there: the path, or the first folder around it that is missing, too."""
    around = [folder.as_posix() for folder in reversed(PurePosixPath(path).parents)][1:]
    return next((folder for folder in around if not any(root.glob(folder))), path)


def build(part: Part, root: Path, images: str | None = None) -> Readable:
    """An instance of the part's class, not yet set up.

    Raises:
        UserError: it takes no template of images' paths, but one is given.
    """
    arguments = {key: _filled_in(value, root) for key, value in part.arguments.items()}
    if images is not None:
        if template(part) is None:
            raise UserError(
                f"--images is {images!r}, but where the images of this part lie is no choice "
                f"({part.class_path} takes no such template); leave it out"
            )
        arguments["images"] = images
    made: Readable = _class(part)(**arguments)
    return made


def _class(part: Part) -> Any:
    module, _, name = part.class_path.rpartition(".")
    return getattr(import_module(module), name)


def template(part: Part) -> str | None:
    """Where the part's class looks for images by itself; None if it cannot be told otherwise."""
    parameter = inspect.signature(_class(part)).parameters.get("images")
    return None if parameter is None else str(parameter.default)


def _filled_in(value: Any, root: Path) -> Any:
    return value.replace(ROOT, str(root)) if isinstance(value, str) else value


def _needed(readable: Readable) -> Iterator[Image]:
    """Every different image whose file is read: of gallery and queries, if not told otherwise."""
    seen: set[str] = set()
    queries = (getattr(query, "image", None) for query in readable.queries)
    for image in getattr(readable, "needed", (*readable.gallery, *queries)):
        if isinstance(image, Image) and image.id not in seen:
            seen.add(image.id)
            yield image


def _missing(images: Sequence[Image]) -> tuple[str, ...]:
    files = missing_files(image for image in images if isinstance(image, FileImage))
    gone = {image.id for image in files}
    gone |= {i.id for i in images if isinstance(i, ArchivedImage) and i.member is None}
    return tuple(image.id for image in images if image.id in gone)


def _broken(images: Sequence[Image]) -> Iterator[str]:
    # Pillow decodes outside the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(_decodes, images)
        progress = tqdm(decoded, desc="decoding", total=len(images), delay=1, disable=None)
        for image, whole in zip(images, progress, strict=True):
            if not whole:
                yield image.id


def _decodes(image: Image) -> bool:
    try:
        image.load()
    except UserError:
        return False
    return True


def _sizes(part: Part, readable: Readable) -> Iterator[tuple[str, bool]]:
    """A line for each size, and whether it is as published (or nothing is known of it)."""
    texts = any(isinstance(item, Caption) for item in readable.gallery)
    items = "captions" if texts else "images"
    records, items = ("records", items) if part.training else ("queries", f"gallery {items}")
    line, as_published = _size(records, len(readable.queries), part.queries)
    kinds = [f"{count:,} {kind}" for kind, count in getattr(readable, "kinds", {}).items()]
    yield (f"{line}: {', '.join(kinds)}" if kinds else line), as_published
    yield _size(items, len(readable.gallery), part.pool)
    if part.candidates is not None:
        found = {len(query.candidates or ()) for query in readable.queries}
        odd = next((size for size in sorted(found) if size != part.candidates), part.candidates)
        yield _size("candidates of a query", odd, part.candidates)


def _size(what: str, found: int, published: int | None) -> tuple[str, bool]:
    if published is None:
        return f"{found:,} {what}", True
    if found == published:
        return f"{found:,} {what}, as published", True
    return f"{found:,} {what}, but {published:,} are published", False
