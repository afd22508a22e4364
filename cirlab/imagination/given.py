"""Pictures that were made elsewhere, such as the ones that DAR's authors released.

Their names are `{dialogue}_{round}_{i}`, or `{dialogue}_{round}` where there is one of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cirlab.errors import UserError
from cirlab.imagination.request import Request, named
from cirlab.records import FileImage, Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class GivenPictures:
    """A folder of pictures, taken as they are: nothing tells which texts they were drawn from.

    Args:
        folder: of the pictures; png, jpg, jpeg or webp.
        images: how many of each request.

    Raises:
        UserError: no images are wanted, or there is no such folder.
    """

    def __init__(self, folder: str, images: int = 1) -> None:
        check_images(images)
        self.folder, self.images = Path(folder), images
        if not self.folder.is_dir():
            raise UserError(f"there is no folder of pictures {folder}; name the one they lie in")
        self._files = {
            path.stem: path
            for path in sorted(self.folder.iterdir())
            if path.suffix.lower() in SUFFIXES
        }

    def pictures(self, requests: Sequence[Request]) -> list[list[Image]]:
        """The pictures of each request, which need not be readable.

        Raises:
            UserError: some are not there; it names the first and counts them.
        """
        found = [[self._find(request, i) for i in range(self.images)] for request in requests]
        missing = [
            request.picture(number)
            for request, paths in zip(requests, found, strict=True)
            for number, path in enumerate(paths)
            if path is None
        ]
        if missing:
            raise UserError(
                f"{len(missing):,} of {len(requests) * self.images:,} pictures are not in "
                f"{self.folder} ({named(missing)}); add them as "
                "<dialogue>_<round>_<number>.png, or have a pipeline draw"
            )
        return [
            [FileImage(request.picture(n), path) for n, path in enumerate(paths) if path]
            for request, paths in zip(requests, found, strict=True)
        ]

    def _find(self, request: Request, number: int) -> Path | None:
        name = request.picture(number)
        if name in self._files or number:
            return self._files.get(name)
        return self._files.get(f"{request.dialogue}_{request.round}")


def check_images(images: int) -> None:
    """Refuse to imagine nothing.

    Raises:
        UserError: there are fewer than one.
    """
    if images < 1:
        raise UserError(f"images is {images}; set how many pictures a text gets to 1 or more")
