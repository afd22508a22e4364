from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.errors import UserError
from cirlab.reading.official import DataRoot, check_choice, check_size


def test_a_template_leads_to_an_image(tmp_path: Path) -> None:
    root = DataRoot(str(tmp_path), "x/{id:06d}.{kind}", fields=("id", "kind"))
    image = root.image("seven", id=7, kind="png")
    assert (image.id, image.path) == ("seven", tmp_path / "x" / "000007.png")


def test_a_path_is_an_id_and_fills_the_template(tmp_path: Path) -> None:
    images = {
        template: DataRoot(str(tmp_path), template, fields=("path", "file")).image_at("a/b/c.jpg")
        for template in ("{path}", "all/{file}")
    }
    assert {image.id for image in images.values()} == {"a/b/c.jpg"}
    assert images["{path}"].path == tmp_path / "a" / "b" / "c.jpg"
    assert images["all/{file}"].path == tmp_path / "all" / "c.jpg"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{name}.jpg", r"names 'name'; it can use: id"),
        ("{id.__class__}", r"names 'id\.__class__'; it can use"),
        ("{}", r"names ''; it can use"),
        ("{id", r"is no template .*; write names in braces: id"),
        ("one.jpg", r"is the same for every image; use one of: id"),
    ],
)
def test_a_wrong_template_is_refused(tmp_path: Path, template: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        DataRoot(str(tmp_path), template, fields=("id",))


def test_a_format_that_does_not_fit_is_told(tmp_path: Path) -> None:
    root = DataRoot(str(tmp_path), "{id:06d}.jpg", fields=("id",))
    with pytest.raises(UserError, match="does not fit image 'x'"):
        root.image("x", id="seven")


@pytest.mark.parametrize(
    ("root", "problem"), [("", "the data root is empty"), ("/no/such", "is not a folder")]
)
def test_a_wrong_root_is_refused(root: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        DataRoot(root, "{id}", fields=("id",))


def test_identities_differ_by_folder_and_template(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    ids = {
        DataRoot(str(root), template, fields=("id",)).identity("a", "val")
        for root in (tmp_path, tmp_path / "other")
        for template in ("{id}.jpg", "{id}.png")
    }
    assert len(ids) == 4 and all(name.startswith("a-val-") for name in ids)


def test_what_is_no_choice_is_told_with_all_choices() -> None:
    check_choice("task", None, ("a", None))
    with pytest.raises(UserError, match=r"task is 'b'; use one of: a, null$"):
        check_choice("task", "b", ("a", None))


def test_another_size_is_refused() -> None:
    check_size("queries", 3, 3, Path("f.json"))
    check_size("queries", 3, None, Path("f.json"))
    with pytest.raises(UserError, match=r"f\.json holds 3 queries, but 4,181 are published"):
        check_size("queries", 3, 4181, Path("f.json"))
