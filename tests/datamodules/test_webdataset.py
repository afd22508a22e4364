from __future__ import annotations

import io
import json
import logging
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cirlab.errors import UserError
from cirlab.records import SampleKey
from datamodules.webdataset import WebDatasetData, failed_downloads, find_shards
from tests.datamodules.toys import fit, jpeg


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def sample(key: str, shade: int, caption: str = "") -> dict[str, bytes]:
    """The members of one sample, as img2dataset writes them."""
    meta = {"key": key, "status": "success", "blip": f"blip {key}", "url": f"example/{key}"}
    return {
        f"{key}.jpg": jpeg(shade),
        f"{key}.txt": (caption or f"text {key}").encode(),
        f"{key}.json": json.dumps(meta, indent=4).encode(),
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two shards of four samples; two downloads had failed, so they are in no shard."""
    for shard in range(2):
        members: dict[str, bytes] = {}
        for i in range(4):
            members |= sample(f"{shard:05d}{i:04d}", 60 * shard + 10 * i)
        write_shard(tmp_path / f"{shard:05d}.tar", members)
        stats = {"count": 5, "successes": 4, "failed_to_download": 1}
        (tmp_path / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
    return tmp_path


def shards(root: Path, **options: Any) -> WebDatasetData:
    settings = {"batch_size": 4, "eval_batch_size": 4, "num_workers": 0, **options}
    return WebDatasetData(str(root), **settings)


def test_samples_are_those_of_the_shards(root: Path) -> None:
    dataset = shards(root).train_dataset()
    assert len(dataset) == 8
    pairs = [dataset[SampleKey(0, i)] for i in range(8)]
    assert [pair.captions for pair in pairs] == [
        (f"text {shard:05d}{i:04d}",) for shard in range(2) for i in range(4)
    ]
    assert pairs[5].image.id == "00001/000010001.jpg"
    assert pairs[5].image.load().getpixel((0, 0)) == (70, 70, 70)


def test_training_sees_every_sample(root: Path) -> None:
    module = fit(shards(root, num_workers=2))
    captions = [caption for _, batch, _ in module.seen for caption in batch]
    assert sorted(captions) == [f"text {s:05d}{i:04d}" for s in range(2) for i in range(4)]


def test_the_caption_may_be_a_field_of_the_json(root: Path) -> None:
    dataset = shards(root, caption="blip").train_dataset()
    assert dataset[SampleKey(0, 6)].captions == ("blip 000010002",)
    with pytest.raises(UserError, match=r"shard 00000, 000000001\.json: the field 'blop' is miss"):
        shards(root, caption="blop").train_dataset()[SampleKey(0, 1)]


def test_incomplete_samples_are_left_out(tmp_path: Path) -> None:
    members = sample("a", 1) | sample("b", 2) | sample("c", 3) | sample("d", 4)
    del members["a.jpg"], members["b.txt"]
    members["c.txt"] = b""  # img2dataset's form of "no caption"
    write_shard(tmp_path / "00000.tar", members)
    dataset = shards(tmp_path).train_dataset()
    assert [dataset[SampleKey(0, i)].captions for i in range(len(dataset))] == [("text d",)]
    from_json = shards(tmp_path, caption="blip").train_dataset()
    found = [from_json[SampleKey(0, i)].captions[0] for i in range(len(from_json))]
    assert found == ["blip b", "blip c", "blip d"]


def test_members_need_not_lie_side_by_side_and_may_be_in_folders(tmp_path: Path) -> None:
    one, two = sample("a", 1), sample("a", 2)
    members = {f"x/{name}": data for name, data in one.items()}
    members |= {f"y/{name.replace('.jpg', '.JPEG')}": data for name, data in two.items()}
    write_shard(tmp_path / "0.tar", dict(sorted(members.items(), key=lambda item: item[0][2:])))
    dataset = shards(tmp_path).train_dataset()
    ids = sorted(dataset[SampleKey(0, i)].image.id for i in range(len(dataset)))
    assert ids == ["0/x/a.jpg", "0/y/a.JPEG"]


def test_the_index_is_kept(root: Path) -> None:
    shards(root).train_dataset()
    assert len(list((root / ".index").iterdir())) == 2
    shards(root, index_cache=str(root / "elsewhere")).train_dataset()
    assert len(list((root / "elsewhere").iterdir())) == 2


def test_failed_downloads_are_counted_and_told(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert failed_downloads(find_shards(str(root))) == 2
    with caplog.at_level(logging.INFO):
        shards(root).train_dataset()
    assert "8 pairs in 2 shards" in caplog.text
    assert "2 downloads had failed" in caplog.text
    (root / "00000_stats.json").unlink()
    assert failed_downloads(find_shards(str(root))) == 1


def test_a_dataset_travels_to_spawned_workers(root: Path) -> None:
    dataset = shards(root).train_dataset()
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[SampleKey(0, 3)] == dataset[SampleKey(0, 3)]


def test_broken_images_are_skipped_and_named(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for i in range(4):
        members |= sample(str(i), i)
    members["2.jpg"] = members["2.jpg"][:50]
    write_shard(tmp_path / "0.tar", members)
    with pytest.raises(UserError, match=r"image 0/2\.jpg does not decode"):
        fit(shards(tmp_path))
    module = fit(shards(tmp_path, on_error="skip"))
    assert module.skipped == ["0/2.jpg"]


@pytest.mark.parametrize("root_name", ["", "/no/such/folder"])
def test_a_missing_folder_is_refused(root_name: str) -> None:
    with pytest.raises(UserError, match="is not a folder; give the folder of the shards"):
        WebDatasetData(root_name, 4, 4).train_dataset()


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no \.tar file in"):
        shards(tmp_path).train_dataset()


def test_shards_without_samples_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"a.jpg": jpeg(1)})
    with pytest.raises(UserError, match=r"no sample of 1 shard\(s\).* has an image and a \.txt"):
        shards(tmp_path).train_dataset()
    write_shard(tmp_path / "0.tar", {})
    with pytest.raises(UserError, match="has an image and a"):
        shards(tmp_path).train_dataset()
