from __future__ import annotations

import inspect
import io
import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cirlab.data_check import __main__ as command
from cirlab.data_check import checking
from cirlab.data_check.checking import build, check
from cirlab.data_check.descriptions import DATA_SETS, ROOT, DataSet, Part, data_set
from cirlab.errors import UserError
from tests.benchmarks.composed_files import write_cirr, write_fashioniq, write_json
from tests.datamodules.toys import jpeg, write_folder, write_images, write_jsonl

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"

#: A folder's composed queries, whose published sizes are those of `write_folder`.
PART = Part(
    name="val",
    class_path="cirlab.benchmarks.FolderComposed",
    arguments={"root": ROOT, "split": "val", "name": "toy"},
    needs=("val/composed.jsonl", "val/gallery.txt"),
    queries=9,
    pool=12,
)
TOY = DataSet(
    title="Toy (arXiv 0000.00000)",
    annotations="https://example.org/toy; MIT",
    images="https://example.org/images; on request",
    source="its README",
    layout=(("val/*.jsonl", "queries"), ("images", "all"), ("masks", "none")),
    parts=(PART, replace(PART, name="test", needs=("test/composed.jsonl",))),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder(tmp_path / "data", split="val")
    return tmp_path / "data"


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


# ---- the command ----------------------------------------------------------------------------


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


# ---- what is read ---------------------------------------------------------------------------


def test_candidates_are_counted(root: Path) -> None:
    part = replace(PART, candidates=3)
    assert check(part, root).deviations == ("0 candidates of a query, but 3 are published",)
    path = root / "val" / "composed.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["candidates"] = row["targets"]
    write_jsonl(path, rows)
    assert check(part, root).deviations == ()
    assert "3 candidates of a query, as published" in check(part, root).sizes


def test_sizes_nobody_published_are_only_told(root: Path) -> None:
    finding = check(replace(PART, queries=None, pool=None), root)
    assert finding.sizes == ("9 queries", "12 gallery images")
    assert finding.complete


def test_an_image_of_gallery_and_query_counts_once(root: Path) -> None:
    """A reference outside the pool counts, too."""
    gallery = root / "val" / "gallery.txt"
    gallery.write_text(gallery.read_text().replace("images/0.jpg\n", ""))
    (root / "images" / "0.jpg").unlink()
    finding = check(PART, root)
    assert (finding.images, finding.missing) == (12, ("images/0.jpg",))


def test_training_images_of_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, split="train")
    (tmp_path / "images" / "11.jpg").unlink()
    part = DATA_SETS["folder"].parts[0]
    finding = check(part, tmp_path)
    assert finding.sizes == ("21 records: 12 pairs, 9 composed", "12 images")
    assert finding.missing == ("images/11.jpg",)
    dialogue = {"id": 1, "rounds": ["a cat"], "targets": ["images/0.jpg"]}
    write_jsonl(tmp_path / "train" / "dialogues.jsonl", [dialogue])
    assert "22 records: 12 pairs, 9 composed, 1 dialogues" in check(part, tmp_path).sizes
    facet = {"id": "1", "facet": "colour", "text": "red", "targets": ["images/0.jpg"]}
    write_jsonl(tmp_path / "train" / "facets.jsonl", [facet])
    assert "9 composed, 1 facets, 1 dialogues" in check(part, tmp_path).sizes[0]
    (tmp_path / "train" / "facets.jsonl").unlink()
    triplet = {"image": "images/12.jpg", "caption": "a", "instruction": "b"}
    path = tmp_path / "train" / "caption_triplets.jsonl"
    write_jsonl(path, [triplet | {"modified_caption": "c"}])
    finding = check(part, tmp_path)
    assert "23 records: 12 pairs, 9 composed, 1 caption triplets, 1 dialogues" in finding.sizes
    assert finding.missing == ("images/11.jpg", "images/12.jpg")
    write_jsonl(path, [triplet])
    assert "line 1: the field 'modified_caption' is missing" in (
        check(part, tmp_path).problem or ""
    )


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder without test split, with files and a split of names of their own."""
    root = tmp_path / "own"
    for split in ("train", "val", "dev"):
        write_folder(root, split=split)
    composed = (root / "val" / "composed.jsonl").read_text()
    for file in ("train/more.jsonl", "val/focus.jsonl"):
        (root / file).write_text(composed)
    write_jsonl(root / "val" / "notes.jsonl", [{"note": "x"}])
    write_jsonl(root / "val" / "broken.jsonl", ["{"])
    (root / "dev" / "caption_triplets.jsonl").write_text("{}\n")
    return root


def test_one_s_own_folder(own: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["folder", "--root", str(own), "--lists", str(tmp_path / "lists")]
    assert command.main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("    ") and "pairs.jsonl" in line] == [
        "    there    */pairs.jsonl                 images with captions "
        "(dev/pairs.jsonl, train/pairs.jsonl, val/pairs.jsonl)"
    ]
    assert any(re.match(r" +none +\*/dialogues", line) for line in lines)
    for part in ("val/focus.jsonl", "dev/composed.jsonl", "dev/pairs.jsonl/image_to_text"):
        assert part in lines
    assert lines[lines.index("val/focus.jsonl") + 1] == "  9 queries"
    assert lines[-5:] == [
        "not there, so not read: val/dialogues.jsonl, val/facets.jsonl, test",
        "not read: train/more.jsonl (training reads pairs.jsonl, composed.jsonl, "
        "caption_triplets.jsonl, dialogues.jsonl and facets.jsonl, others if data.init_args.file "
        "says so)",
        "not read: val/broken.jsonl (its first line is no composed query)",
        "not read: val/notes.jsonl (its first line is no composed query)",
        "not read: dev/caption_triplets.jsonl (caption triplets are only trained on, from the "
        "split train)",
    ]


def test_faults_in_files_of_other_names_count(own: Path, tmp_path: Path) -> None:
    path = own / "val" / "focus.jsonl"
    path.write_text(path.read_text().replace("images/5.jpg", "images/99.jpg"))
    assert command.main(["folder", "--root", str(own), "--lists", str(tmp_path)]) == 1
    part = next(p for p in DATA_SETS["folder"].parts_in(own) if p.name == "val/focus.jsonl")
    assert "images/99.jpg in 'targets', but it is not in" in (check(part, own).problem or "")


def test_images_of_a_folder_that_look_for_texts(tmp_path: Path) -> None:
    write_folder(tmp_path, split="val")
    (tmp_path / "val" / "gallery.txt").unlink()
    (tmp_path / "images" / "3.jpg").unlink()
    read = {part.name: check(part, tmp_path) for part in DATA_SETS["folder"].parts}
    finding = read.pop("val/pairs.jsonl/image_to_text")
    assert finding.sizes == ("12 queries", "24 gallery captions")
    assert (finding.images, finding.missing) == (12, ("images/3.jpg",))
    assert all(other.passed_over for other in read.values()), "without a gallery of images"


# ---- where images lie -----------------------------------------------------------------------


def find(data: str, name: str) -> Part:
    return next(part for part in DATA_SETS[data].parts if part.name == name)


@pytest.fixture
def garments(tmp_path: Path) -> Path:
    """Fashion-IQ as a mirror has it, both splits."""
    for split in ("train", "val"):
        write_fashioniq(tmp_path / "fashioniq", split=split, suffix="jpg")
    return tmp_path / "fashioniq"


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


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        ("images/{asin}.jpg", r"names 'asin'; it can use: category, name"),
        ("images/{name", r"'images/\{name' is no template"),
        ("images/1.jpg", r"'images/1.jpg' is the same for every image"),
    ],
)
def test_what_is_no_template_is_told(garments: Path, images: str, problem: str) -> None:
    for name in ("dress", "train/dress"):
        finding = check(find("fashioniq", name), garments, images=images)
        assert re.search(problem, finding.problem or "")


def test_a_template_that_no_class_takes_is_told(root: Path, run: Any) -> None:
    status, text = run("toy", "--root", str(root), "--images", "{name}.jpg")
    assert status == 1
    assert "cannot be read: --images is '{name}.jpg', but where the images of this part lie" in text


def test_a_template_serves_all_parts_of_a_data_set_or_none() -> None:
    """So that one option is enough."""
    for name, data in DATA_SETS.items():
        takes = {checking.template(part) is not None for part in data.parts}
        assert len(takes) == 1, name


def test_training_images_of_cirr(tmp_path: Path) -> None:
    write_cirr(tmp_path, split="train")
    folder = tmp_path / "img_raw" / "train" / "7"
    for number in (1, 8):  # a distractor, and a reference
        (folder / f"dev-{number}-0-img0.png").unlink()
    finding = check(find("cirr", "train"), tmp_path)
    assert finding.sizes == ("3 records", "9 images, but 16,939 are published")
    assert (finding.images, finding.missing) == (4, ("dev-8-0-img0",))
    assert finding.template == "img_raw/{path}"
    (tmp_path / "flat").mkdir()
    for path in folder.iterdir():
        path.rename(tmp_path / "flat" / path.name)
    moved = check(find("cirr", "train"), tmp_path, images="flat/{name}.png")
    assert moved.missing == finding.missing


def test_training_images_of_fashioniq(garments: Path) -> None:
    """Those that are neither reference nor target train nothing."""
    for name in ("B05", "B12"):
        (garments / "images" / f"{name}.jpg").unlink()
    finding = check(find("fashioniq", "train/dress"), garments, images="images/{name}.jpg")
    assert finding.sizes == (
        "2 records, but 5,985 are published",
        "14 images, but 11,452 are published",
    )
    assert (finding.images, finding.missing) == (3, ("B12",))


def test_dialogues_of_chatir_as_training_data(tmp_path: Path) -> None:
    """Also one's own, and without a search space."""
    names = write_images(tmp_path, 4)
    for file, numbers in (("Human_BLIP2", (0, 1)), ("mine", (1, 2, 3))):
        rows = [{"img": names[n], "dialog": ["a cat", "is it old? no"]} for n in numbers]
        write_json(tmp_path / "dialogues" / f"{file}.json", rows)
    (tmp_path / names[3]).unlink()
    part = find("chatir", "train/dialogues")
    finding = check(part, tmp_path)
    assert finding.sizes == ("5 records", "4 images")
    assert finding.missing == (names[3],)
    (tmp_path / "here").mkdir()
    (tmp_path / names[0]).rename(tmp_path / "here" / "0.jpg")
    moved = check(part, tmp_path, images="here/{file}")
    assert moved.missing == tuple(names[1:])
    write_json(tmp_path / "dialogues" / "mine.json", [{"img": names[1]}])
    assert re.search(r"mine\.json.*the field 'dialog'", check(part, tmp_path).problem or "")


@pytest.mark.parametrize(
    ("data", "name", "file", "row", "problem"),
    [
        (
            "genecis",
            "focus_object",
            "genecis/focus_object.json",
            {},
            "focus_object.json holds 1 queries of focus_object, but 1,960 are published; get the "
            "official file",
        ),
        (
            "coco_facet",
            "COCO_object",
            "benchmark/COCO_object_retrieval.json",
            {"qry_text": "a cat", "tgt_img_path": [1, 2]},
            "'tgt_img_path' holds 2 images, but 100 are published; get the official file",
        ),
    ],
)
def test_advice_is_what_a_check_can_do(
    tmp_path: Path, data: str, name: str, file: str, row: dict[str, Any], problem: str
) -> None:
    """It has no `official: false`."""
    write_json(tmp_path / file, [row])
    assert (check(find(data, name), tmp_path).problem or "").endswith(problem)


def mtcir(root: Path, images: int = 5) -> Part:
    names = write_images(root, images)
    rows = [
        {"image": names[i], "target_image": names[i + 1], "modifications": ["x"]}
        for i in range(images - 1)
    ]
    write_jsonl(root / "a.jsonl", rows[:2])
    write_jsonl(root / "b.jsonl", rows[2:])
    return DATA_SETS["mtcir"].parts[0]


def test_mtcir_in_a_folder(tmp_path: Path) -> None:
    part = mtcir(tmp_path)
    (tmp_path / "images" / "2.jpg").unlink()
    finding = check(part, tmp_path, decode=True)
    assert finding.sizes == ("4 records", "5 images")
    assert finding.missing == ("images/2.jpg",)
    assert finding.broken == ()


def test_mtcir_in_archives(tmp_path: Path) -> None:
    part = mtcir(tmp_path)
    (tmp_path / "images" / "4.jpg").write_bytes(b"no image")
    (tmp_path / "tars").mkdir()
    for number, held in enumerate(((0, 1), (4, 3))):
        with tarfile.open(tmp_path / "tars" / f"{number}.tar", "w") as archive:
            for i in held:
                name = f"images/{i}.jpg"
                archive.add(tmp_path / name, arcname=name)
    finding = check(part, tmp_path, decode=True)
    assert finding.missing == ("images/2.jpg",)
    assert finding.broken == ("images/4.jpg",)


def test_mtcir_without_or_with_other_lines(tmp_path: Path) -> None:
    part = DATA_SETS["mtcir"].parts[0]
    assert "there is no .jsonl file" in (check(part, tmp_path).problem or "")
    write_jsonl(tmp_path / "a.jsonl", [{"ref": "x"}])
    assert "a.jsonl, line 1: the field 'image' is missing" in (check(part, tmp_path).problem or "")


def test_caption_training_files_name_their_images(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    names = ["images/0.jpg", "images/1.jpg", "images/0.jpg", "images/9.jpg"]
    rows = [{"caption": "c", "image": name, "image_id": "coco_1"} for name in names]
    (tmp_path / "coco_karpathy_train.json").write_text(json.dumps(rows))
    part = next(part for part in DATA_SETS["coco_karpathy"].parts if part.name == "train")
    finding = check(part, tmp_path, decode=True)
    assert finding.sizes == (
        "4 records, but 566,747 are published",
        "3 images, but 113,287 are published",
    )
    assert (finding.missing, finding.broken) == (("images/9.jpg",), ())


@pytest.mark.parametrize("split", ["train", "val"])
def test_visdial_images_lie_in_their_folders(tmp_path: Path, split: str) -> None:
    part = next(part for part in DATA_SETS["visdial"].parts if part.name == split)
    turns = [{"question": 0, "answer": 0}]
    dialogues = [{"image_id": n, "caption": "a cat", "dialog": turns} for n in (1, 22, 333)]
    content = {"data": {"dialogs": dialogues, "questions": ["is it old"], "answers": ["no"]}}
    (tmp_path / f"visdial_1.0_{split}.json").write_text(json.dumps(content))
    there = ["VisualDialog_val2018/VisualDialog_val2018_000000000001.jpg"]
    if split == "train":
        there = [f"{n}2014/COCO_{n}2014_{i:012d}.jpg" for n, i in (("train", 1), ("val", 22))]
    for name in there:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(jpeg(1))
    finding = check(part, tmp_path, decode=True)
    assert finding.sizes == ("3 records", "3 images")
    folder, name = there[0].split("/")
    gone = [333] if split == "train" else [22, 333]
    expected = [f"{folder}/{name.replace('000000000001', f'{n:012d}')}" for n in gone]
    assert list(finding.missing) == expected
    assert finding.broken == ()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not a whole JSON document"),
        ("[]", "holds no object that has a key 'data'"),
        ('{"data": {}}', "has no key 'dialogs'"),
        (
            '{"data": {"dialogs": [{}], "questions": [], "answers": []}}',
            "data.dialogs.record 1: the field 'caption' is missing",
        ),
    ],
)
def test_what_is_no_visdial_file_is_told(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "visdial_1.0_val.json").write_text(content)
    finding = check(DATA_SETS["visdial"].parts[1], tmp_path)
    assert re.search(rf"visdial_1\.0_val\.json.*{problem}", finding.problem or "")


# ---- the descriptions -----------------------------------------------------------------------

PARTS = [(name, part) for name, data in DATA_SETS.items() for part in data.parts]


@pytest.mark.parametrize(("name", "part"), PARTS, ids=lambda value: getattr(value, "name", value))
def test_classes_take_the_arguments_of_the_descriptions(
    tmp_path: Path, name: str, part: Part
) -> None:
    module, _, cls = part.class_path.rpartition(".")
    inspect.signature(getattr(import_module(module), cls)).bind(**part.arguments)
    made = build(part, tmp_path)
    assert str(tmp_path) in {str(value) for value in vars(made).values()}


def test_parts_of_a_data_set_have_different_names() -> None:
    for data in DATA_SETS.values():
        names = [part.name for part in data.parts]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_is_described_in_the_docs_and_by_the_command(name: str) -> None:
    data = data_set(name)
    out = io.StringIO()
    command.describe(data, None, Console(file=out, width=300))
    for text in (data.title, data.annotations, data.images, data.source):
        assert text in out.getvalue()
    assert re.search(rf"^\| `{name}` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(("name", "part"), PARTS, ids=lambda value: getattr(value, "name", value))
def test_what_a_part_needs_is_in_the_layout(tmp_path: Path, name: str, part: Part) -> None:
    patterns = [pattern for pattern, _ in DATA_SETS[name].layout]
    for path in part.needs:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
        if name != "folder":
            assert any(next(tmp_path.glob(pattern), None) for pattern in patterns), path


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean cirr"):
        data_set("crir")
