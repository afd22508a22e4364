"""What benchmarks with official files share: where images lie, and published sizes."""

from __future__ import annotations

import logging
import string
import zlib
from collections.abc import Collection
from pathlib import Path

from cirlab.errors import UserError
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
        if not root.strip():
            raise UserError(
                "the data root is empty; give a folder, e.g. by the environment variable that "
                "the YAML names"
            )
        self.folder = Path(root)
        if not self.folder.is_dir():
            raise UserError(f"the data root {root} is not a folder; create it or correct the path")
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
