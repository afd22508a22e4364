from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from cirlab.errors import UserError
from cirlab.records import CaptionTriplet, FileImage, PromptedPair, SampleKey, TextPair, Triplet
from datamodules.folder import FolderData
from datamodules.joined import JoinedData
from datamodules.mixed import MixedData
from tests.datamodules.toys import ToyModule, fit, jpeg, write_folder, write_jsonl


def folder_data(root: Path | list[Path], records: str = "pairs", **options: object) -> FolderData:
    roots = [str(r) for r in root] if isinstance(root, list) else str(root)
    settings = {"batch_size": 4, "eval_batch_size": 4, "num_workers": 0, **options}
    return FolderData(roots, records, **settings)  # type: ignore[arg-type]


def test_pairs_come_with_all_captions(tmp_path: Path) -> None:
    names = write_folder(tmp_path)
    dataset = folder_data(tmp_path).train_dataset()
    assert len(dataset) == 12
    pairs = [dataset[SampleKey(0, i)] for i in range(12)]
    assert [pair.image.id for pair in pairs] == names
    assert pairs[3].captions == ("images/3.jpg a", "images/3.jpg b")  # type: ignore[union-attr]
    assert pairs[3].image.load().size == (8, 8)  # type: ignore[union-attr]


def test_training_sees_every_pair_of_full_batches(tmp_path: Path) -> None:
    names = write_folder(tmp_path)
    module = fit(folder_data(tmp_path, num_workers=1))
    captions = [caption for _, batch, _ in module.seen for caption in batch]
    assert sorted(captions) == sorted(f"{name} a" for name in names)


def test_a_triplets_target_is_drawn_anew_each_epoch_from_its_key(tmp_path: Path) -> None:
    names = write_folder(tmp_path)
    dataset = folder_data(tmp_path, "triplets").train_dataset()
    assert len(dataset) == 9
    drawn = set()
    for epoch in range(30):
        triplet = dataset[SampleKey(epoch, 2)]
        assert triplet == dataset[SampleKey(epoch, 2)]
        assert isinstance(triplet, Triplet)
        assert triplet.reference.id == names[2]
        assert triplet.texts == ("brighter than 2",)
        assert triplet.tags == {"category": "even"}
        drawn.add(triplet.target.id)
        assert sorted((triplet.target.id, *triplet.also_correct)) == sorted(names[3:6])
    assert drawn == set(names[3:6])
    other_seed = folder_data(tmp_path, "triplets", seed=1).train_dataset()
    keys = [SampleKey(epoch, 2) for epoch in range(30)]
    assert [dataset[key] for key in keys] != [other_seed[key] for key in keys]


def test_texts_are_two_captions_of_one_image_and_need_no_image(tmp_path: Path) -> None:
    names = write_folder(tmp_path)
    rows = [{"image": names[0], "captions": ["a", "b", "c"]}, {"image": "x", "captions": ["d"]}]
    write_jsonl(tmp_path / "train" / "pairs.jsonl", rows)
    dataset = folder_data(tmp_path, "texts").train_dataset()
    drawn = {dataset[SampleKey(epoch, 0)] for epoch in range(40)}
    assert drawn == {TextPair(query=q, target=t) for q in "abc" for t in "abc" if q != t}
    assert dataset[SampleKey(5, 0)] == dataset[SampleKey(5, 0)]
    assert dataset[SampleKey(0, 1)] == TextPair(query="d", target="d")


def test_lines_are_checked_once(tmp_path: Path) -> None:
    names = write_folder(tmp_path)
    data = folder_data(tmp_path)
    assert [image.id for image in data.train_images()] == names
    (tmp_path / "train" / "pairs.jsonl").unlink()
    assert [image.id for image in data.train_images()] == names


def test_several_texts_stay_several(tmp_path: Path) -> None:
    names = write_folder(tmp_path)
    row = {"id": 0, "reference": names[0], "texts": ["a", "b"], "targets": [names[1]]}
    write_jsonl(tmp_path / "train" / "composed.jsonl", [row])
    triplet = folder_data(tmp_path, "triplets").train_dataset()[SampleKey(0, 0)]
    assert isinstance(triplet, Triplet)
    assert triplet.texts == ("a", "b")
    assert triplet.tags == {}


def test_several_folders_are_joined(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", 5)
    write_folder(tmp_path / "two", 6)
    dataset = folder_data([tmp_path / "one", tmp_path / "two"]).train_dataset()
    images = [dataset[SampleKey(0, i)].image for i in range(len(dataset))]  # type: ignore[union-attr]
    expected = [f"one/images/{i}.jpg" for i in range(5)]
    expected += [f"two/images/{i}.jpg" for i in range(6)]
    assert [image.id for image in images] == expected
    assert isinstance(images[7], FileImage)
    assert images[7].path == tmp_path / "two" / "images" / "2.jpg"


def test_a_dataset_travels_to_spawned_workers(tmp_path: Path) -> None:
    write_folder(tmp_path)
    dataset = folder_data(tmp_path, "triplets").train_dataset()
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[SampleKey(1, 4)] == dataset[SampleKey(1, 4)]


# ---- bad input -------------------------------------------------------------------------------

GOOD = {"image": "images/0.jpg", "captions": ["a"]}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"captions": ["a"]}, r"line 2: the field 'image' is missing \(it has captions\)"),
        ({"image": "images/0.jpg"}, "line 2: the field 'captions' is missing"),
        ({**GOOD, "captions": "a"}, "line 2: the field 'captions' is \"a\", but must be a list"),
        ({**GOOD, "captions": []}, r"line 2: the field 'captions' is \[\], but must be a list"),
        ({**GOOD, "image": ["x"]}, "line 2: the field 'image' is .* must be a non-empty string"),
        ('{"image": ', "line 2: not valid JSON"),
    ],
)
def test_a_malformed_pair_is_told_before_training(
    tmp_path: Path, line: dict[str, object] | str, problem: str
) -> None:
    write_folder(tmp_path)
    write_jsonl(tmp_path / "train" / "pairs.jsonl", [GOOD, line])
    with pytest.raises(UserError, match=rf"pairs\.jsonl, {problem}") as caught:
        fit(folder_data(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["id", "reference", "text", "targets"])
def test_a_malformed_triplet_is_told_before_training(tmp_path: Path, missing: str) -> None:
    write_folder(tmp_path)
    path = tmp_path / "train" / "composed.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[4][missing]
    write_jsonl(path, rows)
    with pytest.raises(UserError, match=rf"composed\.jsonl, line 5: the field '{missing}' is miss"):
        fit(folder_data(tmp_path, "triplets"), ToyModule(record=Triplet))


def test_an_excluded_target_is_a_contradiction(tmp_path: Path) -> None:
    names = write_folder(tmp_path)
    row = {"id": "x", "reference": names[0], "text": "t", "targets": names[1:3]}
    write_jsonl(tmp_path / "train" / "composed.jsonl", [{**row, "exclude": [names[2]]}])
    with pytest.raises(UserError, match=r"line 1: images/2\.jpg is a target and excluded"):
        folder_data(tmp_path, "triplets").train_dataset()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"root": ""}, "the data root is empty"),
        ({"root": "  "}, "the data root is empty"),
        ({"root": "/no/such/folder"}, "the data root /no/such/folder is not a folder"),
        ({"root": []}, "root is an empty list"),
        ({"split": "trian"}, r"no split 'trian' in .* \(folders there: images, train\)"),
        ({"records": "triplets"}, r"there is no file .*composed\.jsonl"),
    ],
)
def test_a_wrong_place_is_one_sentence(
    tmp_path: Path, change: dict[str, object], problem: str
) -> None:
    write_folder(tmp_path)
    (tmp_path / "train" / "composed.jsonl").unlink()
    settings = {"root": str(tmp_path), "records": "pairs", "split": "train", **change}
    data = FolderData(batch_size=4, eval_batch_size=4, **settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=problem) as caught:
        data.train_dataset()
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train" / "pairs.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"pairs\.jsonl has no lines"):
        folder_data(tmp_path).train_dataset()


def test_roots_of_equal_name_are_refused(tmp_path: Path) -> None:
    for parent in "ab":
        write_folder(tmp_path / parent / "photos", 4)
    with pytest.raises(UserError, match="two data roots have the same name"):
        folder_data([tmp_path / "a" / "photos", tmp_path / "b" / "photos"]).train_dataset()


def test_missing_images_are_counted_before_training(tmp_path: Path) -> None:
    names = write_folder(tmp_path)
    for name in names[3:5]:
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"2 of 12 images are missing, the first is .*3\.jpg"):
        fit(folder_data(tmp_path))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_ends_training_in_one_sentence(tmp_path: Path, workers: int) -> None:
    names = write_folder(tmp_path)
    (tmp_path / names[5]).write_bytes(jpeg(5)[:60])
    with pytest.raises(UserError, match=r"5\.jpg does not decode .* on_error: skip") as caught:
        fit(folder_data(tmp_path, num_workers=workers))
    assert "\n" not in str(caught.value)


def test_broken_and_missing_images_are_skipped_and_named(tmp_path: Path) -> None:
    names = write_folder(tmp_path)
    (tmp_path / names[5]).write_bytes(jpeg(5)[:60])
    (tmp_path / names[8]).unlink()
    module = fit(folder_data(tmp_path, on_error="skip", num_workers=1))
    assert sorted(set(module.skipped)) == [names[5], names[8]]
    assert len(module.seen) == 3
    captions = [caption for _, batch, _ in module.seen for caption in batch]
    assert len(captions) == 12
    assert set(captions) == {f"{name} a" for name in names} - {
        f"{names[5]} a",
        f"{names[8]} a",
    }


def caption_triplets(names: list[str]) -> list[dict[str, object]]:
    return [
        {
            "pair": i,
            "image": name,
            "caption": f"shade {i}",
            "instruction": "brighter",
            "modified_caption": f"shade {i + 1}",
        }
        for i, name in enumerate(names)
    ]


def test_caption_triplets_need_no_target_image(tmp_path: Path) -> None:
    names = write_folder(tmp_path)
    write_jsonl(tmp_path / "train" / "caption_triplets.jsonl", caption_triplets(names))
    module = folder_data(tmp_path, "caption_triplets")
    assert module.train_record is CaptionTriplet
    dataset = module.train_dataset()
    assert len(dataset) == len(names) == len(module.train_images())
    assert dataset[SampleKey(0, 3)] == CaptionTriplet(
        reference=FileImage(names[3], tmp_path / names[3]),
        caption="shade 3",
        text="brighter",
        target_caption="shade 4",
    )


def test_prompted_records_draw_one_of_the_images_that_have_a_property(tmp_path: Path) -> None:
    names = write_folder(tmp_path)
    row = {"id": "1", "facet": "shade", "text": "a dark one", "targets": names[:4]}
    write_jsonl(tmp_path / "train" / "facets.jsonl", [row | {"prompt": "how dark is it?"}, row])
    module = folder_data(tmp_path, "prompted")
    assert module.train_record is PromptedPair
    dataset = module.train_dataset()
    assert [image.id for image in module.train_images()] == names[:4]
    drawn = [dataset[SampleKey(epoch, 0)] for epoch in range(20)]
    assert {record.image.id for record in drawn} == set(names[:4])
    for record in drawn:
        assert (record.text, record.prompt) == ("a dark one", "how dark is it?")
    assert dataset[SampleKey(0, 1)].prompt is None


def test_records_may_stand_elsewhere_and_images_in_a_folder_of_their_own(tmp_path: Path) -> None:
    names = [name.removeprefix("images/") for name in write_folder(tmp_path / "data")]
    write_jsonl(tmp_path / "data" / "made" / "triplets.jsonl", caption_triplets(names))
    options = {"file": "made/triplets.jsonl", "images": "images"}
    dataset = folder_data(tmp_path / "data", "caption_triplets", **options).train_dataset()
    triplet = dataset[SampleKey(0, 3)]
    assert isinstance(triplet, CaptionTriplet)
    assert triplet.reference == FileImage("3.jpg", tmp_path / "data" / "images" / "3.jpg")
    absolute = options | {"file": str(tmp_path / "data" / "made" / "triplets.jsonl")}
    assert len(folder_data(tmp_path / "data", "caption_triplets", **absolute).train_dataset()) == 12
    write_jsonl(tmp_path / "more" / "made" / "triplets.jsonl", caption_triplets(names[:1]))
    both = folder_data([tmp_path / "data", tmp_path / "more"], "caption_triplets", **options)
    both.on_error = "skip"
    last = both.train_dataset()[SampleKey(0, 12)]
    assert isinstance(last, CaptionTriplet)
    assert last.reference == FileImage("more/0.jpg", tmp_path / "more" / "images" / "0.jpg")


@pytest.mark.parametrize("field", ["image", "caption", "instruction", "modified_caption"])
def test_a_caption_triplet_without_a_field_is_named(tmp_path: Path, field: str) -> None:
    rows = caption_triplets(write_folder(tmp_path))
    rows[1][field] = ""
    write_jsonl(tmp_path / "train" / "caption_triplets.jsonl", rows)
    with pytest.raises(UserError, match=rf"caption_triplets\.jsonl, line 2: the field '{field}'"):
        folder_data(tmp_path, "caption_triplets").train_dataset()


def test_parts_of_caption_triplets_are_joined_and_mixed(tmp_path: Path) -> None:
    names = write_folder(tmp_path)
    write_jsonl(tmp_path / "train" / "caption_triplets.jsonl", caption_triplets(names))
    for kind in (JoinedData, MixedData):
        parts = [folder_data(tmp_path, "caption_triplets") for _ in range(2)]
        joined = kind(parts, batch_size=4, eval_batch_size=4, num_workers=0)
        assert joined.train_record is CaptionTriplet
        triplet = joined.train_dataset()[SampleKey(0, 15)]
        assert isinstance(triplet, CaptionTriplet)
        assert (triplet.reference.id, triplet.caption) == (f"1:{names[3]}", "shade 3")
