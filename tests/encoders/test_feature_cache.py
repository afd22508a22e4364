from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch

from cirlab.benchmarks.genecis import SquareCrop
from cirlab.encoders.feature_cache import cached_features, cached_views
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


def test_an_image_may_have_more_than_a_vector_in_sixteen_bits(tmp_path: Path) -> None:
    def compute(some: Sequence[Image]) -> Iterable[torch.Tensor]:
        yield torch.stack([torch.full((4, 3), 0.1 + float(image.id)) for image in some])

    for _ in range(2):
        cache = cached_features(tmp_path, "vit", images(1, 2), compute, dtype=torch.float16)
        found = cache(images(2, 1))
        assert (found.dtype, found.shape) == (torch.float16, (2, 4, 3))
        assert torch.equal(found[0], torch.full((4, 3), 2.1).half())
    (stored,) = tmp_path.rglob("*.npy")
    assert stored.stat().st_size < 2 * 4 * 3 * 2 + 200


def test_what_is_too_large_for_sixteen_bits_is_not_kept(tmp_path: Path) -> None:
    def compute(some: Sequence[Image]) -> Iterable[torch.Tensor]:
        yield torch.tensor([[[1.0, 2.0]], [[1.0, 1e6]]])

    with pytest.raises(UserError, match=r"features of image 2 .*not all finite"):
        cached_features(tmp_path, "vit", images(1, 2), compute, dtype=torch.float16)


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


class Views:
    """The feature of image 7 in view 2 is (2, 7); it remembers which were asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []

    def __call__(self, images: Sequence[Image], lacking: torch.Tensor) -> Iterable[torch.Tensor]:
        for start in range(0, len(images), 2):
            part = images[start : start + 2]
            asked = lacking[:, start : start + 2].nonzero().tolist()
            self.asked += [(view, part[row].id) for view, row in asked]
            numbers = torch.tensor([float(image.id) for image in part])
            view = torch.arange(len(lacking)).float()[:, None].expand(-1, len(part))
            yield torch.stack([view, numbers.expand(len(lacking), -1)], dim=2)


ALL = torch.ones(2, 3, dtype=torch.bool)


def test_of_several_views_only_what_is_needed_and_lacking_is_computed(tmp_path: Path) -> None:
    compute = Views()
    needed = torch.tensor([[True, True, True], [False, True, False]])
    general, asked = cached_views(tmp_path, ["", "colour"], images(1, 2, 3), needed, compute)
    assert sorted(compute.asked) == [(0, "1"), (0, "2"), (0, "3"), (1, "2")]
    assert general(images(3, 1)).tolist() == [[0, 3], [0, 1]]
    assert asked(images(2)).tolist() == [[1, 2]]
    assert images(1)[0] not in asked

    again = Views()
    _, asked = cached_views(tmp_path, ["", "colour"], images(1, 2, 3), ALL, again)
    assert again.asked == [(1, "1"), (1, "3")]
    assert asked(images(3, 2, 1))[:, 1].tolist() == [3, 2, 1]

    further = Views()
    cached_views(tmp_path, ["colour", "size"], images(1, 2, 3), ALL, further)
    assert {view for view, _ in further.asked} == {1}
    nothing = Views()
    cached_views(tmp_path, ["size", ""], images(3, 2, 1), ALL, nothing)
    assert nothing.asked == []


def test_an_image_under_an_old_id_is_looked_at_anew_in_every_view(tmp_path: Path) -> None:
    compute = Views()
    cached_views(tmp_path, ["", "colour"], images(1, 2, 3), ALL, compute)
    changed = [*images(1, 2), EncodedImage(id="3", data=b"other pixels")]
    compute.asked.clear()
    cached_views(tmp_path, ["", "colour"], changed, ALL, compute)
    assert compute.asked == [(0, "3"), (1, "3")]


def test_what_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    def broken(images: Sequence[Image]) -> Iterable[torch.Tensor]:
        yield torch.tensor([[0.0, 1.0], [torch.nan, 1.0]])

    with pytest.raises(UserError, match=r"features of image 2 .*not all finite"):
        cached_features(tmp_path, "vit", images(1, 2), broken)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _write_slowly(folder: Path, written: str) -> None:
    """Computes two of three features, says so, and waits."""

    def slow(some: Sequence[Image]) -> Iterable[torch.Tensor]:
        yield torch.ones(1, 3)
        yield torch.ones(1, 3)
        Path(written).touch()
        time.sleep(600)

    cached_features(folder, "vit", images(1, 2, 3), slow)


def test_what_a_kill_leaves_is_not_read(tmp_path: Path) -> None:
    written = tmp_path / "written"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_write_slowly, args=(tmp_path / "cache", str(written)))
    process.start()
    while not written.exists():
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join()
    assert list((tmp_path / "cache").rglob("*.unfinished"))
    backbone = Backbone()
    cache = cached_features(tmp_path / "cache", "vit", images(1, 2, 3), backbone)
    assert backbone.asked == ["1", "2", "3"]
    assert cache(images(3, 1))[:, 0].tolist() == [3, 1]


def test_two_runs_that_compute_at_once_agree(tmp_path: Path) -> None:
    """The second comes while the first is in the middle of its work, and is done before it."""
    backbone = Backbone()

    def first(some: Sequence[Image]) -> Iterable[torch.Tensor]:
        yield torch.full((1, 3), 1.0)
        other = cached_features(tmp_path, "vit", images(1, 2, 3), backbone)
        assert other(images(2))[0].tolist() == [2, 2, 2]
        yield torch.full((1, 3), 2.0)
        yield torch.full((1, 3), 3.0)

    cache = cached_features(tmp_path, "vit", images(1, 2, 3), first)
    assert backbone.asked == ["1", "2", "3"]
    assert cache(images(1, 2, 3))[:, 0].tolist() == [1, 2, 3]
    assert cached_features(tmp_path, "vit", images(2, 3), backbone) is not None
    assert len(backbone.asked) == 3


def test_a_name_of_several_lines_is_one_image(tmp_path: Path) -> None:
    folder = tmp_path / "two\nlines"
    folder.mkdir()
    photos = [FileImage(id=str(n), path=folder / f"{n}\n{n}.jpg") for n in (1, 2, 3)]
    for photo in photos:
        photo.path.write_bytes(b"photograph")
    cached_features(tmp_path / "cache", "vit", photos, Backbone())
    backbone = Backbone()
    cache = cached_features(tmp_path / "cache", "vit", photos, backbone)
    assert backbone.asked == []
    assert cache(photos)[:, 0].tolist() == [1, 2, 3]


def test_images_that_share_an_id_have_features_of_their_own(tmp_path: Path) -> None:
    both = [EncodedImage(id="7", data=b"small"), EncodedImage(id="7", data=b"large")]

    def by_size(some: Sequence[Image]) -> Iterable[torch.Tensor]:
        for image in some:
            assert isinstance(image, EncodedImage)
            yield torch.full((1, 3), float(len(image.data) + (image.data == b"large")))

    cache = cached_features(tmp_path, "vit", both, by_size)
    assert cache(both)[:, 0].tolist() == [5, 6]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*place: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"2 vectors of 3 values take .* no room .No space left"):
        cached_features(tmp_path, "vit", images(1, 2), Backbone())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_disk_is_taken_before_it_is_written_to(tmp_path: Path) -> None:
    def compute(some: Sequence[Image]) -> Iterable[torch.Tensor]:
        yield torch.ones(1, 5000)
        (unfinished,) = tmp_path.rglob("*.unfinished")
        assert unfinished.stat().st_blocks * 512 >= 2 * 5000 * 4
        yield torch.ones(1, 5000)

    cached_features(tmp_path, "vit", images(1, 2), compute)


def test_what_was_abandoned_is_cleared_away(tmp_path: Path) -> None:
    cached_features(tmp_path, "vit", images(1), Backbone())
    (part,) = tmp_path.rglob("*.npy")
    old, new = part.with_name("old.unfinished"), part.with_name("new.unfinished")
    for left in (old, new):
        left.touch()
    os.utime(old, (0, 0))
    cached_features(tmp_path, "vit", images(2), Backbone())
    assert not old.exists() and new.exists()
