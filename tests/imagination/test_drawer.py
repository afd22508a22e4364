"""Drawing: each picture from its own noise, once, whatever happens in between."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cirlab.errors import UserError
from cirlab.imagination import Drawer, Request
from cirlab.imagination.pipeline import Pipeline
from cirlab.records import Image
from tests.tiny_pipeline import LIMIT, SIZE, write_pipeline

REQUESTS = [
    Request("a", 0, "a red star"),
    Request("a", 1, "a red star at the top"),
    Request("b", 0, "two blue rings"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that a pipeline has drawn."""
    texts: list[str] = []
    draw = Pipeline.draw

    def counted(self: Pipeline, prompts: Sequence[str], *args: Any) -> Any:
        texts.extend(prompts)
        return draw(self, prompts, *args)

    monkeypatch.setattr(Pipeline, "draw", counted)
    return texts


def drawer(folder: Path, store: Path, **options: Any) -> Drawer:
    settings: dict[str, Any] = {"steps": 2, "guidance": 3.0} | options
    return Drawer(str(folder), str(store), **settings)


def pixels(found: list[list[Image]]) -> np.ndarray:
    """Shape (N, S, S, 3), int64."""
    return np.stack([np.asarray(image.load(), int) for images in found for image in images])


def test_batch_and_order_change_nothing(folder: Path, tmp_path: Path) -> None:
    together = pixels(drawer(folder, tmp_path / "a", images=2).pictures(REQUESTS))
    alone = drawer(folder, tmp_path / "b", images=2, batch_size=1).pictures(REQUESTS[::-1])
    assert together.shape == (6, SIZE, SIZE, 3)
    # Matrix products of another size round otherwise.
    assert abs(together - pixels(alone[::-1])).max() <= 1
    # Pictures of one text differ by their noise, which the seed decides.
    assert abs(together[0] - together[1]).max() > 8
    reseeded = drawer(folder, tmp_path / "c", images=2, seed=1).pictures(REQUESTS[:1])
    assert abs(together[:2] - pixels(reseeded)).max() > 8


def test_only_what_is_not_there_is_drawn(folder: Path, tmp_path: Path, drawn: list[str]) -> None:
    drawer(folder, tmp_path).pictures(REQUESTS[:1])
    drawer(folder, tmp_path).pictures(REQUESTS)
    assert drawn == [request.prompt for request in REQUESTS]
    again = drawer(folder, tmp_path)
    assert [image.id for (image,) in again.pictures(REQUESTS)] == ["a_0_0", "a_1_0", "b_0_0"]
    assert len(drawn) == 3 and again._pipeline is None


def test_a_broken_picture_is_drawn_again(
    folder: Path, tmp_path: Path, drawn: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = pixels(drawer(folder, tmp_path).pictures(REQUESTS))
    path = tmp_path / "a_1_0.png"
    path.write_bytes(path.read_bytes()[:60])
    with caplog.at_level(logging.WARNING):
        after = pixels(drawer(folder, tmp_path).pictures(REQUESTS))
    assert "a_1_0.png" in caplog.text
    assert drawn[3:] == ["a red star at the top"]
    assert abs(before - after).max() <= 1


SCRIPT = """
import sys
from cirlab.imagination import Drawer, Request
requests = [Request(str(number), 0, f"a red star {number}") for number in range(60)]
Drawer(*sys.argv[1:], steps=8, batch_size=2).pictures(requests)
"""


def test_a_killed_run_goes_on_where_it_was(folder: Path, tmp_path: Path, drawn: list[str]) -> None:
    store = tmp_path / "store"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(store)], env=environment
    )
    try:
        while len(list(store.glob("*.png"))) < 3 and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = {path.name: path.stat().st_mtime_ns for path in store.glob("*.png")}
    assert 3 <= len(left) < 60
    requests = [Request(str(number), 0, f"a red star {number}") for number in range(60)]
    drawer(folder, store, steps=8, guidance=7.0, batch_size=2).pictures(requests)
    now = {path.name: path.stat().st_mtime_ns for path in store.glob("*.png")}
    assert len(now) == 60 and left.items() <= now.items()
    assert len(drawn) == 60 - len(left)


def test_long_texts_are_counted_each_time(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Two of the tokens are marks.
    words = ["red"] * (LIMIT - 1)
    requests = [Request("a", 0, " ".join(words)), Request("a", 1, " ".join(words[1:]))]
    for _ in range(2):
        caplog.clear()
        made = drawer(folder, tmp_path, images=2)
        made.pictures(requests)
        assert made.cut_prompts == 1
        assert "1 of 2 texts are longer than the text encoders of" in caplog.text
        assert len(caplog.records) == 1


def test_other_weights_under_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "pipeline")
    drawer(copy, tmp_path / "store").pictures(REQUESTS[:1])
    shutil.rmtree(copy)
    write_pipeline(copy, seed=1)
    with pytest.raises(UserError, match="another weights"):
        drawer(copy, tmp_path / "store")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": 0}, "images is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"size": 0}, "size is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(
    folder: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        drawer(folder, tmp_path, **options)


def test_a_size_between_two_latents_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"size is 18, but .* multiples of 4 pixels; set it to 16"):
        drawer(folder, tmp_path, size=18).pictures(REQUESTS)
    (image,) = drawer(folder, tmp_path, size=24).pictures(REQUESTS[:1])[0]
    assert image.load().size == (24, 24)


def test_two_texts_for_one_picture_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="round 0 of dialogue a has two texts"):
        drawer(folder, tmp_path).pictures([*REQUESTS, Request("a", 0, "a blue star")])


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("model_index.json", "it has no model_index.json"),
        ("unet", "lacks the folder of its part unet"),
        ("vae/config.json", "lacks config.json of its part vae"),
        ("text_encoder/model.safetensors", "lacks the weights of its part text_encoder"),
        ("scheduler/scheduler_config.json", "lacks scheduler_config.json of its part scheduler"),
    ],
)
def test_a_part_that_is_missing_is_named(
    folder: Path, tmp_path: Path, part: str, said: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "pipeline")
    path = copy / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=said):
        drawer(copy, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_what_does_not_draw_from_words_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "pipeline")
    index = json.loads((copy / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionImg2ImgPipeline"
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="Img2ImgPipeline, which does not draw from words alone"):
        drawer(copy, tmp_path / "store").pictures(REQUESTS)


def test_an_unknown_name_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the zoo holds no model 'zoo:no_painter'"):
        Drawer("zoo:no_painter", str(tmp_path))
