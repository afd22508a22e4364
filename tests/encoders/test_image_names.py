from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

from cirlab.encoders.image_names import image_names, place
from cirlab.records import DecodedImage, EncodedImage, FileImage
from cirlab.world.image import SceneImage
from cirlab.world.scene import draw_scene, generator


def test_images_of_one_id_are_told_apart_by_what_they_show() -> None:
    one, other = (draw_scene(generator("val", seed)) for seed in (0, 1))
    grey, white = (PIL.Image.new("RGB", (4, 4), colour) for colour in ("grey", "white"))
    same_id = [
        SceneImage("7", one),
        SceneImage("7", one, 32),
        SceneImage("7", one.twin(one.nuisance + 1)),
        SceneImage("7", other),
        EncodedImage("7", b"jpeg"),
        EncodedImage("7", b"other jpeg"),
        DecodedImage("7", grey),
        DecodedImage("7", white),
    ]
    names = image_names(same_id)
    assert len(set(names)) == len(same_id)
    assert image_names(same_id) == names
    assert image_names([SceneImage("8", one)])[0] not in names


def test_a_place_needs_no_file(tmp_path: Path) -> None:
    photo = FileImage("7", tmp_path / "7.jpg")
    assert place(photo) == (str(tmp_path / "7.jpg"), "")
    PIL.Image.fromarray(np.zeros((2, 2, 3), dtype=np.uint8)).save(photo.path)
    assert str(tmp_path / "7.jpg") in image_names([photo])[0]
