from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch

from cirlab.benchmarks.genecis import SquareCrop
from cirlab.encoders.feature_cache import cached_features
from cirlab.errors import UserError
from cirlab.records import EncodedImage, FileImage, Image


def images(*numbers: int) -> list[Image]:
    return [EncodedImage(id=str(number), data=b"") for number in numbers]


class Backbone:
    """The feature of image 7 is (7, 7, 7); it remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, images: Sequence[Image]) -> Iterable[torch.Tensor]:
        self.asked += [image.id for image in images]
        for image in images:
            yield torch.full((1, 3), float(image.id))


def test_features_belong_to_their_images_in_any_order(tmp_path: Path) -> None:
    cache = cached_features(tmp_path, "vit", images(3, 1, 2), Backbone())
    assert cache(images(2, 3, 2))[:, 0].tolist() == [2.0, 3.0, 2.0]
    copy = pickle.loads(pickle.dumps(cache))
    assert copy(images(1))[0].tolist() == [1.0, 1.0, 1.0]


def test_only_new_images_are_computed(tmp_path: Path) -> None:
    backbone = Backbone()
    cached_features(tmp_path, "vit", images(1, 2, 3), backbone)
    cache = cached_features(tmp_path, "vit", images(2, 4, 5), backbone)
    assert backbone.asked == ["1", "2", "3", "4", "5"]
    assert cache(images(5, 2, 4))[:, 0].tolist() == [5.0, 2.0, 4.0]
    assert images(1)[0] not in cache
    cached_features(tmp_path, "vit", images(5, 1), backbone)
    assert len(backbone.asked) == 5


def test_another_backbone_has_features_of_its_own(tmp_path: Path) -> None:
    backbone = Backbone()
    cached_features(tmp_path, "vit", images(1), backbone)
    cached_features(tmp_path, "resnet", images(1), backbone)
    assert backbone.asked == ["1", "1"]


def test_an_interrupted_computation_leaves_nothing(tmp_path: Path) -> None:
    def broken(images: Sequence[Image]) -> Iterable[torch.Tensor]:
        yield torch.zeros(1, 3)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cached_features(tmp_path, "vit", images(1, 2), broken)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    backbone = Backbone()
    cached_features(tmp_path, "vit", images(1, 2), backbone)
    assert backbone.asked == ["1", "2"]


def test_a_replaced_file_is_another_image(tmp_path: Path) -> None:
    path = tmp_path / "7"
    path.write_bytes(b"old")
    backbone = Backbone()
    photo = FileImage(id="7", path=path)
    cached_features(tmp_path, "vit", [photo], backbone)
    path.write_bytes(b"newer")
    cached_features(tmp_path, "vit", [photo], backbone)
    assert backbone.asked == ["7", "7"]


def test_parts_of_a_file_are_images_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "7"
    path.write_bytes(b"photograph")
    parts = [SquareCrop(id=str(side), path=path, box=(0, 0, side, side)) for side in (8, 9)]
    backbone = Backbone()
    cache = cached_features(tmp_path, "vit", [FileImage(id="7", path=path), *parts], backbone)
    assert backbone.asked == ["7", "8", "9"]
    assert cache([parts[1], parts[0], FileImage(id="other", path=path)])[:, 0].tolist() == [9, 8, 7]


def test_a_file_under_several_paths_is_computed_once(tmp_path: Path) -> None:
    path = tmp_path / "data" / "7"
    path.parent.mkdir()
    path.write_bytes(b"photograph")
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "folder").symlink_to(path.parent)
    others = [tmp_path / "link", tmp_path / "folder" / "7", tmp_path / "data" / ".." / "data" / "7"]
    photos = [FileImage(id="7", path=path), *(FileImage(id="other", path=p) for p in others)]
    backbone = Backbone()
    cache = cached_features(tmp_path, "vit", photos, backbone)
    assert backbone.asked == ["7"]
    assert cache(photos)[:, 0].tolist() == [7, 7, 7, 7]


def test_files_are_asked_for_once_and_not_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system is slow to answer."""
    photos = [FileImage(id=str(n), path=tmp_path / str(n)) for n in range(5)]
    for photo in photos:
        photo.path.write_bytes(b"photograph")
    asked: list[str] = []

    def count(name: str) -> None:
        original = getattr(Path, name)

        def counted(self: Path, *args: object, **options: object) -> object:
            asked.append(self.name)
            return original(self, *args, **options)

        monkeypatch.setattr(Path, name, counted)

    for name in ("stat", "resolve"):  # `lstat` calls the first
        count(name)
    cache = cached_features(tmp_path / "cache", "vit", [*photos, *photos], Backbone())
    of_photos = [name for name in asked if name.isdecimal()]
    assert sorted(of_photos) == [photo.id for photo in photos]
    assert asked.count(tmp_path.name) <= 2, "of their folder, which `resolve` asks for twice"
    asked.clear()
    copy = pickle.loads(pickle.dumps(cache))
    assert all(photo in copy for photo in photos) and len(copy(photos)) == 5
    assert not [name for name in asked if name.isdecimal()]


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    photos = [FileImage(id="a photo", path=tmp_path / "none.jpg")]
    with pytest.raises(UserError, match=r"image 'a photo' cannot be read: .*none\.jpg"):
        cached_features(tmp_path, "vit", photos, Backbone())
