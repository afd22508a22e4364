"""`python -m cirlab chat` from end to end: real methods, a folder of files, lines from stdin."""

from __future__ import annotations

import io
import re
from pathlib import Path

import PIL.Image
import pytest

from cirlab.cli import main
from cirlab.command.chat import world_gallery
from tests.tiny_run import tiny_experiment


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of the world among other files; one picture is cut off."""
    root = tmp_path_factory.mktemp("photos")
    (root / "deep").mkdir()
    for number, path in enumerate(sorted(world_gallery(root / "world").iterdir())[:12]):
        path.rename(root / ("deep" if number % 2 else "") / f"{number:02}.png")
    for path in (root / "world").iterdir():
        path.unlink()
    (root / "world").rmdir()
    (root / "notes.txt").write_text("no image")
    (root / "liar.jpg").write_text("no image either")
    whole = (root / "00.png").read_bytes()
    (root / "zz_cut.png").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_experiment(tmp_path, trainer={"max_epochs": 1})
    return tmp_path


def chat(lines: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return main(["chat", "-c", "tiny.yaml", *options])


UNTRAINED = ("--ckpt_path", "untrained")
LISTED = (*UNTRAINED, "--questioner", "list")


def test_a_folder_is_encoded_once_and_searched_by_talking(
    here: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--root", str(photos), "--target", "deep/03.png", "--top", "5", *LISTED]
    # Own photographs are asked about in other words than the world.
    assert chat("a red circle\na dog\n\n/quit\n", monkeypatch, *options) == 0
    shown = capsys.readouterr().out
    assert "left out, no images: 2 (liar.jpg, notes.txt)" in shown
    assert "left out, images that do not decode: 1 (zz_cut.png)" in shown
    ranks = re.findall(r"rank of the target: (\d+) of 12", shown)
    assert len(ranks) == 2 and all(1 <= int(rank) <= 12 for rank in ranks)
    assert shown.count(str(photos)) == 10
    assert "what objects are in the picture? a dog\n" in shown and "(passed over)" in shown
    assert f"1 answer; rank of the target by round: {', '.join(ranks)}" in shown
    sheet = here / "runs" / "chat" / "tiny.png"
    assert PIL.Image.open(sheet).format == "PNG" and f"pictures: {sheet}\n" in shown
    (cache,) = (here / "runs" / "cache").iterdir()
    parts = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(parts) == 2
    assert chat("a red circle\n", monkeypatch, *options) == 0
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == parts
    assert f"rank of the target: {ranks[0]} of 12" in capsys.readouterr().out
    # A chat leaves no run.
    assert {path.name for path in (here / "runs").iterdir()} == {"cache", "chat"}


def test_without_a_folder_it_is_about_the_world_and_an_mllm_tells_candidates_apart(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = here / "own.yaml"
    questions.write_text("questions:\n  a: what time is it?\n  b: what shapes are there?\n")
    options = ["--registry", str(questions), "--top", "2", "--sheet", "own.png", *UNTRAINED]
    assert chat("a red circle\n\n\n", monkeypatch, *options) == 0
    shown = capsys.readouterr().out
    assert "runs/chat/world/val-" in shown and (here / "own.png").is_file()
    assert {"what time is it?", "what shapes are there?"} == set(re.findall(r"what .*\?", shown))
    assert "There is nothing left to ask." in shown


def test_the_best_checkpoint_of_the_experiment_is_loaded(
    here: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--root", str(photos), "--questioner", "list"]
    assert chat("", monkeypatch, *options) == 2, "there is none yet"
    assert main(["fit", "-c", "tiny.yaml"]) == 0
    capsys.readouterr()
    assert chat("a red circle\n", monkeypatch, *options) == 0
    trained = re.findall(r"\d\d\.png", capsys.readouterr().out)
    assert len(trained) == 10
    assert chat("a red circle\n", monkeypatch, *options, *UNTRAINED) == 0
    assert re.findall(r"\d\d\.png", capsys.readouterr().out) != trained
    assert len(list((here / "runs" / "cache").iterdir())) == 2, "weights are told apart"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--root", "nowhere"], "nowhere is not a folder"),
        (["--root", "."], "there is no image in ., only 1 other files; give a folder of images"),
        (["--root", "PHOTOS", "--target", "none.png"], "none.png is not among the 13 images in"),
        (["--root", "PHOTOS", "--target", "zz_cut.png"], "zz_cut.png does not decode; choose anot"),
        (["--root", "PHOTOS", "--top", "0"], "top is 0; set it to 1 or more"),
        (
            ["--root", "PHOTOS", "--questioner", "llm"],
            "needs an instruction LLM; name it with --llm",
        ),
        (["--root", "PHOTOS", "--registry", "none"], "there are no questions 'none'"),
        (["--root", "PHOTOS", "--sheet", "a.jpg"], "the sheet a.jpg must end in .png"),
        (
            ["--root", "PHOTOS", "--questioner", "information_gain", "--answerer", "zoo:none"],
            "the zoo holds no model 'zoo:none'",
        ),
        (["--rooot", "PHOTOS"], "rooot"),
    ],
)
def test_what_is_of_no_use_is_told_in_one_sentence(
    here: Path,
    photos: Path,
    options: list[str],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = [str(photos) if option == "PHOTOS" else option for option in options]
    assert chat("a red circle\n", monkeypatch, *LISTED, *given) == 2
    assert problem in caplog.messages[-1] and "\n" not in caplog.messages[-1]


def test_a_method_without_words_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tower = Path(__file__).parents[2] / "experiments" / "zoo" / "tower.yaml"
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["chat", "-c", str(tower), *UNTRAINED]) == 2
    assert "TokenLabelling finds no images by words" in caplog.messages[-1]
