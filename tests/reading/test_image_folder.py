from __future__ import annotations

import os
from pathlib import Path

import PIL.Image
import pytest

from cirlab.errors import UserError
from cirlab.reading.image_folder import images_below, named_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    (root / ".cache").mkdir()
    picture = PIL.Image.new("RGB", (8, 8), "red")
    for name in ("b.png", "more/a.jpg", ".cache/hidden.png", ".hidden.png"):
        picture.save(root / name)
    picture.save(root / "without_suffix", format="PNG")
    (root / "notes.txt").write_text("no image")
    (root / "more" / "liar.jpg").write_text("no image either")
    (root / "empty.png").touch()
    (root / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "pipe.png")
    return root


def test_images_are_told_by_what_they_hold(folder: Path) -> None:
    found = images_below(str(folder))
    assert [image.id for image in found.images] == ["b.png", "without_suffix", "more/a.jpg"]
    assert found.others == ("empty.png", "notes.txt", "more/liar.jpg")
    assert {image.load().size for image in found.images} == {(8, 8)}


def test_an_image_is_known_by_its_path_from_here_or_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    found = images_below("pictures")
    for path in ("more/a.jpg", "pictures/more/a.jpg", str(folder / "more" / "a.jpg")):
        assert found.image(path).id == "more/a.jpg"
    with pytest.raises(
        UserError, match=r"^notes.txt is not among the 3 images in pictures; .*b.png"
    ):
        found.image("notes.txt")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no image in \S+; give a folder of images$"):
        images_below(str(tmp_path))
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(UserError, match="only 1 other files"):
        images_below(str(tmp_path))
    with pytest.raises(UserError, match="is not a folder"):
        images_below(str(tmp_path / "notes.txt"))


def test_many_names_are_not_all_told() -> None:
    assert named_files(("a", "b")) == "a, b"
    assert named_files(tuple("abcde")) == "a, b, c and 2 more"
