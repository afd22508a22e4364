"""What the command prints of a data set, and its exit status."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cirlab.data_check import __main__ as command
from cirlab.data_check.checking import check
from cirlab.data_check.descriptions import DATA_SETS, data_set
from tests.benchmarks.composed_files import write_cirr
from tests.data_check.toy import TOY
from tests.datamodules.toys import jpeg, write_images


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The command on the toy; its exit status and what it prints."""
    monkeypatch.setattr(
        "cirlab.data_check.descriptions.DATA_SETS", {"toy": TOY, "other": DATA_SETS["cirr"]}
    )

    def run(*options: str) -> tuple[int, str]:
        status = command.main([*options, "--lists", str(tmp_path / "lists")])
        return status, capsys.readouterr().out

    return run


def test_a_whole_data_set_is_said_to_be_whole(root: Path, run: Any, tmp_path: Path) -> None:
    status, text = run("toy", "--root", str(root), "--decode")
    assert status == 0
    for line in (
        "annotations  https://example.org/toy; MIT",
        "images       https://example.org/images; on request",
        "there    val/*.jsonl  queries",
        "there    images       all",
        "missing  masks        none",
        "9 queries, as published",
        "12 gallery images, as published",
        "none of 12 images is missing",
        "none of 12 images is broken",
        "not there, so not read: test\n",
    ):
        assert line in text
    assert not (tmp_path / "lists").exists()


def test_missing_images_are_counted_named_and_listed(root: Path, run: Any, tmp_path: Path) -> None:
    for number in range(11):
        (root / "images" / f"{number}.jpg").unlink()
    status, text = run("toy", "--root", str(root))
    assert status == 1
    path = tmp_path / "lists" / "toy_val_missing.txt"
    first = ", ".join(f"images/{i}.jpg" for i in range(10))
    assert f"11 of 12 images are missing, all listed in {path}: {first}, ...\n" in text
    assert path.read_text().split() == [f"images/{i}.jpg" for i in range(11)]
    write_images(root, 12)
    assert run("toy", "--root", str(root))[0] == 0
    assert not path.exists(), "the list of an earlier check was left"


def test_broken_images_are_found_on_request(root: Path, run: Any, tmp_path: Path) -> None:
    (root / "images" / "3.jpg").write_bytes(b"no image")
    (root / "images" / "7.jpg").unlink()
    status, text = run("toy", "--root", str(root))
    assert status == 1
    assert "images is broken" not in text and "images are broken" not in text
    status, text = run("toy", "--root", str(root), "--decode")
    assert "1 of 12 images are broken" in text
    assert "1 of 12 images are missing" in text
    assert (tmp_path / "lists" / "toy_val_broken.txt").read_text() == "images/3.jpg\n"


def test_other_sizes_than_the_published_are_told(root: Path, run: Any) -> None:
    """Images of the folder in place of the split's: CIRR's most frequent mistake."""
    gallery = root / "val" / "gallery.txt"
    gallery.write_text(gallery.read_text() + "images/more.jpg\n")
    (root / "images" / "more.jpg").write_bytes(jpeg(1))
    queries = root / "val" / "composed.jsonl"
    queries.write_text("".join(queries.read_text().splitlines(keepends=True)[:-1]))
    status, text = run("toy", "--root", str(root))
    assert status == 1
    assert "13 gallery images, but 12 are published" in text
    assert "8 queries, but 9 are published" in text


def test_of_several_files_it_is_told_which_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cirr(tmp_path, split="val")
    options = ["cirr", "--root", str(tmp_path), "--lists", str(tmp_path / "lists")]
    command.main(options)
    assert re.search(
        r"1 of 3   captions/cap\.rc2\.\*\.json .* \(missing: captions/cap\.rc2\.train\.json, "
        r"captions/cap\.rc2\.test1\.json\)\n",
        capsys.readouterr().out,
    )
    for split in ("train", "test1"):
        (tmp_path / "captions" / f"cap.rc2.{split}.json").touch()
    command.main(options)
    assert "there    captions/cap.rc2.*.json" in capsys.readouterr().out
    for path in (tmp_path / "captions").iterdir():
        path.unlink()
    (tmp_path / "captions" / "cap.rc2.other.json").touch()
    command.main(options)
    assert "missing  captions/cap.rc2.*.json" in capsys.readouterr().out


def test_the_queries_of_chatir_are_explained_once() -> None:
    out = io.StringIO()
    command.describe(data_set("chatir"), None, Console(file=out, width=300))
    told = "2,064 dialogues of 11 texts (caption and ten rounds) = 22,704 queries each"
    assert out.getvalue().count(told) == 1


def test_malformed_annotations_are_told(root: Path, run: Any) -> None:
    path = root / "val" / "composed.jsonl"
    path.write_text(path.read_text() + "{\n")
    status, text = run("toy", "--root", str(root))
    assert status == 1
    assert "cannot be read: " in text
    assert "composed.jsonl, line 10: not valid JSON" in text


def test_a_folder_with_nothing_of_it_is_not_whole(tmp_path: Path, run: Any) -> None:
    status, text = run("toy", "--root", str(tmp_path))
    assert status == 1
    assert "missing  val/*.jsonl" in text
    assert "not there, so not read: val, test\n" in text


def test_without_a_root_it_is_said_where_the_data_come_from(run: Any) -> None:
    status, text = run("toy")
    assert status == 0
    assert "https://example.org/toy; MIT" in text
    assert "there " not in text and "missing" not in text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["tiy"], r"no description of a data set 'tiy'; did you mean toy\? choose one of: toy, ot"),
        (["qqq"], r"no description of a data set 'qqq'; choose one of: toy, other"),
        ([], r"no data set is named; choose one of: toy, other"),
        (["toy", "--root", "/no/such/folder"], r"root /no/such/folder is not a folder"),
        (["toy", "--root", ""], r"the data root is empty"),
    ],
)
def test_wrong_names_and_folders_are_refused(
    run: Any, caplog: pytest.LogCaptureFixture, options: list[str], problem: str
) -> None:
    status, text = run(*options)
    assert (status, text) == (2, "")
    assert re.search(problem, caplog.text)


def test_paths_are_printed_as_they_are(root: Path, run: Any) -> None:
    """Neither wrapped nor taken for markup."""
    odd = root.parent / ("long " * 30 + "[bold]")
    root.rename(odd)
    status, text = run("toy", "--root", str(odd))
    assert status == 0
    assert f"below {odd}\n" in text


def test_images_of_another_suffix_are_there_if_one_says_so(
    garments: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What they are not complete of is the published sizes, which a toy does not have."""
    options = ["fashioniq", "--root", str(garments), "--lists", str(tmp_path / "lists")]
    command.main(options)
    hint = "all of them were looked for at images/{name}.png below the folder; if they have other"
    text = capsys.readouterr().out
    assert text.count(hint) == 6 and "3 of 3 images are missing" in text
    command.main([*options, "--decode", "--images", "images/{name}.jpg"])
    text = capsys.readouterr().out
    assert "looked for" not in text and "missing, all" not in text
    assert text.count("is missing") == text.count("is broken") == 6
    for part in DATA_SETS["fashioniq"].parts:
        part = replace(part, queries=None, pool=None)
        assert check(part, garments, images="images/{name}.jpg").complete


def test_some_missing_images_say_nothing_of_the_template(
    garments: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (garments / "images" / "B41.jpg").unlink()
    options = ["--root", str(garments), "--lists", str(tmp_path), "--images", "images/{name}.jpg"]
    assert command.main(["fashioniq", *options]) == 1
    text = capsys.readouterr().out
    assert "looked for" not in text
    assert "1 of 3 images are missing" in text and ": B41" in text


def test_a_template_that_no_class_takes_is_told(root: Path, run: Any) -> None:
    status, text = run("toy", "--root", str(root), "--images", "{name}.jpg")
    assert status == 1
    assert "cannot be read: --images is '{name}.jpg', but where the images of this part lie" in text
