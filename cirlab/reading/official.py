"""What readers of official files share: where images lie, choices, and published sizes."""

from __future__ import annotations

import logging
import string
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from cirlab.errors import UserError
from cirlab.reading.files import data_folder
from cirlab.records import FileImage

log = logging.getLogger(__name__)


class DataRoot:
    """A data folder, and how its images' paths follow from what annotations say of them.

    Official layouts differ from how people keep their images, so each benchmark takes a
    template: `"img_raw/{path}"`, or `"val2017/{id:012d}.jpg"`.

    Args:
        root: the folder.
        images: template of an image's path below it; Python's format syntax, names only.
        fields: names the template may use.

    Raises:
        UserError: root is empty or no folder, or the template names something else.
    """

    def __init__(self, root: str, images: str, fields: Collection[str]) -> None:
        self.folder = data_folder(root)
        self.template = images
        self.fields = sorted(fields)
        self._check()

    def image(self, name: str, /, **facts: str | int) -> FileImage:
        """The image with this id, its path filled in from the facts."""
        try:
            path = self.template.format(**facts)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"the image path {self.template!r} does not fit image {name!r} ({error}); "
                "correct images under the benchmark's init_args"
            ) from error
        return FileImage(id=name, path=self.folder / path)

    def image_at(self, path: str) -> FileImage:
        """The image whose id is what annotations say of its path, of fields `path` and `file`."""
        return self.image(path, path=path, file=PurePosixPath(path).name)

    def identity(self, *parts: str) -> str:
        """A gallery's id: the same for the same files in the same folder only."""
        place = f"{self.folder.resolve()}\n{self.template}"
        return "-".join((*parts, f"{zlib.crc32(place.encode()):08x}"))

    def _check(self) -> None:
        try:
            named = [name for _, name, _, _ in string.Formatter().parse(self.template)]
        except ValueError as error:
            raise UserError(
                f"the image path {self.template!r} is no template ({error}); write names in "
                f"braces: {', '.join(self.fields)}"
            ) from error
        used = [name for name in named if name is not None]
        if unknown := [name for name in used if name not in self.fields]:
            raise UserError(
                f"the image path {self.template!r} names {unknown[0]!r}; it can use: "
                f"{', '.join(self.fields)}"
            )
        if not used:
            raise UserError(
                f"the image path {self.template!r} is the same for every image; use one of: "
                f"{', '.join(self.fields)}"
            )


def check_choice(what: str, value: object, choices: Collection[object]) -> None:
    """Refuse what is none of the choices.

    Args:
        what: is chosen, e.g. "split of CIRR".
        value: what was.
        choices: all there are.

    Raises:
        UserError: it names them.
    """
    if value not in choices:
        told = ", ".join("null" if choice is None else str(choice) for choice in choices)
        raise UserError(f"{what} is {value!r}; use one of: {told}")


def check_size(what: str, found: int, published: int | None, path: Path) -> None:
    """Numbers compare only on the published sets, so another size is refused.

    Args:
        what: was counted, e.g. "gallery images of CIRR's val split".
        found: how many there are.
        published: how many there should be; None where nobody verified it.
        path: the file that was read.

    Raises:
        UserError: the numbers differ.
    """
    if published is not None and found != published:
        raise UserError(
            f"{path} holds {found:,} {what}, but {published:,} are published; get the official "
            "file, or set official: false to evaluate on it as a benchmark of its own"
        )


def tell_size(what: str, found: int, published: int, path: Path) -> None:
    """Log how a variant with other queries compares with the original."""
    log.info("%s: %s %s, the original has %s", path, f"{found:,}", what, f"{published:,}")
