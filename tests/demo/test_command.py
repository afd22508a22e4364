from __future__ import annotations

from pathlib import Path

import PIL.Image
import pytest
import torch

from cirlab.demo.__main__ import main
from cirlab.demo.picture import SIDE, Section, draw_sections

ZOO = ["--captioner", "zoo:tiny_mllm", "--matcher", "zoo:tiny_clip", "--device", "cpu"]


def test_a_scene_is_shown_with_all_that_is_said_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "made" / "demo.png"
    assert main([*ZOO, "--output", str(path), "--question", "what is the view?"]) == 0
    shown = capsys.readouterr().out
    titles = ("description (zoo:tiny_mllm)", "answers (zoo:tiny_mllm)", "features (zoo:tiny_clip)")
    places = [shown.index(title) for title in (*titles, "texts by how they match, cosine")]
    assert places == sorted(places)
    assert "what is the view? seen from" in shown and "128 numbers: " in shown
    assert f"picture: {path}\n" in shown and "know the built-in world only" not in shown
    # The scene's own description is nearer to it than those of three others.
    matches = shown[places[-1] :].splitlines()[1:6]
    assert float(matches[0].split()[0]) > 0.4 + float(matches[-1].split()[0])
    image = PIL.Image.open(path)
    assert image.format == "PNG" and image.width > 2 * SIDE and image.height >= SIDE


def test_an_image_of_ones_own_is_asked_and_matched_as_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, plot = tmp_path / "own.jpg", tmp_path / "demo.png"
    PIL.Image.new("L", (300, 100), 99).save(path)
    texts = ["--text", "a [grey] wall", "--text", "a dog"]
    assert main([*ZOO, "--image", str(path), *texts, "--output", str(plot)]) == 0
    shown = capsys.readouterr().out
    assert "know the built-in world only" in shown and "what objects are in the picture?" in shown
    assert "a [grey] wall" in shown and "a dog" in shown and "an empty room" not in shown


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--image", "none.jpg"], "image 'none.jpg' is missing: there is no file none.jpg"),
        (["--image", "text.jpg"], "does not decode"),
        (["--output", "demo.jpg"], "demo.jpg would be a PNG file; let its name end in .png"),
        (["--device", "abacus"], "there is no device 'abacus' here"),
        (["--captioner", "zoo:none"], "the zoo holds no model 'zoo:none'"),
    ],
)
def test_what_is_of_no_use_is_told_in_one_sentence(
    options: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.jpg").write_text("no image")
    assert main([*ZOO, *options]) == 2
    assert problem in caplog.messages[-1] and "\n" not in caplog.messages[-1]
    assert not list(tmp_path.rglob("*.png"))


def test_the_picture_grows_with_what_is_said_and_shows_the_features() -> None:
    image = PIL.Image.new("RGB", (10, 10), "black")
    features = torch.tensor([1.0, 0.0, -1.0])
    low = draw_sections(image, [Section("a", ["b"], features)])
    high = draw_sections(image, [Section("a", ["long words " * 99] * 9)])
    assert low.width == high.width and high.height > 2 * low.height
    colours = {colour for _, colour in low.getcolors(1 << 20) or []}
    assert {(213, 94, 0), (0, 114, 178)} <= colours, "the largest above and below zero"
