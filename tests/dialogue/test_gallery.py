from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

import cirlab.dialogue.gallery as gallery
from cirlab.dialogue.gallery import encode_gallery
from cirlab.errors import UserError
from cirlab.records import FileImage, Image


class Shades:
    """Encodes an image as its colour, and remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def image_collator(self) -> Any:
        return self._read

    def _read(self, images: Sequence[Image]) -> dict[str, torch.Tensor]:
        self.seen += [image.id for image in images]
        colours = [image.load().getpixel((0, 0)) for image in images]
        return {"colours": torch.tensor(colours, dtype=torch.float32)}

    def query_collator(self) -> Any:
        raise NotImplementedError

    def encode_images(self, inputs: Any, prompt: str | None = None) -> torch.Tensor:
        return inputs["colours"]

    def encode_queries(self, inputs: Any) -> torch.Tensor:
        raise NotImplementedError


@pytest.fixture
def images(tmp_path: Path) -> list[FileImage]:
    found = []
    for number in range(10):
        path = tmp_path / f"{number}.png"
        PIL.Image.effect_noise((64, 64), 99).convert("RGB").save(path)
        shade = PIL.Image.new("RGB", (64, 64), (20 * number, 7, 9))
        shade.save(path)
        found.append(FileImage(f"{number}.png", path))
    return found


def encoded(method: Shades, images: Sequence[Image], folder: Path, **options: Any) -> Any:
    return encode_gallery(method, images, folder / "cache", "shades", batch_size=3, **options)


def test_nothing_is_encoded_twice_and_every_image_keeps_its_row(
    images: list[FileImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "KEPT_TOGETHER", 4)
    first, told = Shades(), []
    few = encoded(first, images[2:7], tmp_path, shown=told.append)
    assert first.seen == [f"{number}.png" for number in range(2, 7)]
    assert told == sorted(told) and told[-1] == 5 and 3 in told
    second = Shades()
    every = encoded(second, images, tmp_path)
    assert sorted(second.seen) == ["0.png", "1.png", "7.png", "8.png", "9.png"]
    assert [image.id for image in every.images] == [image.id for image in images]
    assert every.vectors[:, 0].tolist() == [20.0 * number for number in range(10)]
    assert torch.equal(few.vectors, every.vectors[2:7]) and not every.broken
    other = Shades()
    encode_gallery(other, images[:1], tmp_path / "cache", "other weights")
    assert other.seen == ["0.png"]


def test_broken_images_are_left_out_and_the_others_encoded_once(
    images: list[FileImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "KEPT_TOGETHER", 5)
    for number in (1, 3, 9):
        data = images[number].path.read_bytes()
        images[number].path.write_bytes(data[: len(data) // 2])
    method = Shades()
    found = encoded(method, images, tmp_path)
    assert found.broken == ("1.png", "3.png", "9.png")
    left = [0, 2, 4, 5, 6, 7, 8]
    assert [image.id for image in found.images] == [f"{number}.png" for number in left]
    assert found.vectors[:, 0].tolist() == [20.0 * number for number in left]
    assert sorted(method.seen) == [f"{number}.png" for number in left]
    again = Shades()
    assert encoded(again, images, tmp_path).broken == found.broken and not again.seen
    with pytest.raises(UserError, match=r"none of 1 images decodes, the first is 1\.png"):
        encoded(method, [images[1]], tmp_path)


def test_an_interruption_loses_one_part_at_most(
    images: list[FileImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "KEPT_TOGETHER", 4)

    def interrupt(done: int) -> None:
        if done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoded(Shades(), images, tmp_path, shown=interrupt)
    after = Shades()
    encoded(after, images, tmp_path)
    assert after.seen == [f"{number}.png" for number in range(4, 10)]
