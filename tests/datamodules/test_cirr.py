from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from cirlab.benchmarks.cirr import TRAIN_IMAGES, CIRRImages
from cirlab.errors import UserError
from cirlab.records import SampleKey, Triplet
from datamodules.cirr import CIRRData
from tests.benchmarks.composed_files import CIRR_ROWS, cirr_name, write_cirr, write_json
from tests.datamodules.toys import ToyModule, fit

REAL = Path(os.environ.get("DATA_ROOT", "/nowhere")) / "benchmarks" / "cirr"


def cirr(root: Path, rows: Any = None, **options: Any) -> CIRRData:
    write_cirr(root, rows, split="train")
    settings = {
        "batch_size": 2,
        "eval_batch_size": 2,
        "num_workers": 0,
        "official": False,
        **options,
    }
    return CIRRData(str(root), **settings)


class Collating(ToyModule):
    """Keeps the texts and skipped images of its batches."""

    def train_collator(self) -> Any:
        return lambda records: {"texts": [record.texts for record in records]}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        self.skipped += batch["skipped"]
        self.seen += [(0, texts, ()) for texts in batch["texts"]]
        return self.weight.sum()


def test_triplets_are_those_of_the_file(tmp_path: Path) -> None:
    rows = copy.deepcopy(CIRR_ROWS)
    scores = {2: 1.0, 8: 1.0, 1: 1.0, 5: 0.5, 0: -1.0}
    rows[1]["target_soft"] = {cirr_name(n): score for n, score in scores.items()}
    dataset = cirr(tmp_path, rows).train_dataset()
    assert len(dataset) == 3
    triplet = pickle.loads(pickle.dumps(dataset))[SampleKey(0, 1)]
    assert isinstance(triplet, Triplet)
    assert triplet.reference.id == cirr_name(8)
    assert triplet.reference.load().getpixel((0, 0)) == (80, 80, 80), "a folder of train/"
    assert triplet.target.load().getpixel((0, 0)) == (20, 20, 20)
    assert triplet.texts == ("make it look like 2",)
    assert triplet.also_correct == (cirr_name(1),), "neither target nor reference"
    assert dataset[SampleKey(0, 0)].also_correct == ()


def test_features_may_be_cached_of_all_images_that_are_used(tmp_path: Path) -> None:
    images = cirr(tmp_path).train_images()
    assert [image.id for image in images] == [cirr_name(n) for n in (0, 2, 8, 5)]


def test_queries_without_words_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = copy.deepcopy(CIRR_ROWS)
    rows[0]["caption"] = " "
    dataset = cirr(tmp_path, rows).train_dataset()
    texts = [dataset[SampleKey(0, i)].texts for i in range(len(dataset))]
    assert texts == [("make it look like 2",), ("make it look like 3",)]
    assert "1 of 3 queries have no words" in caplog.text


def test_a_run_sees_every_triplet(tmp_path: Path) -> None:
    module = fit(cirr(tmp_path, batch_size=1), Collating(record=Triplet))
    assert sorted(texts for _, texts, _ in module.seen) == [
        (f"make it look like {n}",) for n in (1, 2, 3)
    ]


def test_missing_images_are_refused_or_skipped(tmp_path: Path) -> None:
    data = cirr(tmp_path)
    (tmp_path / "img_raw" / "train" / "7" / f"{cirr_name(8)}.png").unlink()
    with pytest.raises(UserError, match=r"1 of 4 images are missing, the first is .*dev-8-0-img0"):
        data.train_dataset()
    data = CIRRData(str(tmp_path), 1, 1, num_workers=0, official=False, on_error="skip")
    module = fit(data, Collating(record=Triplet))
    assert module.skipped == [cirr_name(8)]


def test_other_files_and_image_paths(tmp_path: Path) -> None:
    write_json(tmp_path / "mine.json", CIRR_ROWS[:1])
    options = {"captions": "mine.json", "images": "flat/{name}.jpg", "on_error": "skip"}
    dataset = cirr(tmp_path, **options).train_dataset()
    assert len(dataset) == 1
    assert dataset.images[0].path == tmp_path / "flat" / f"{cirr_name(0)}.jpg"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"target_hard": "dev-99-0-img0"}, "target_hard dev-99-0-img0 is not among the members"),
        ({"target_hard": None}, "the field 'target_hard' is null"),
        ({"pairid": 3}, "the pairid 3 stands already in"),
    ],
)
def test_a_malformed_query_is_told_at_the_start(
    tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    rows = copy.deepcopy(CIRR_ROWS)
    rows.append(copy.deepcopy(rows[1]) | {"pairid": 4} | fields)
    with pytest.raises(UserError, match=rf"cap\.rc2\.train\.json, record 4: .*{problem}"):
        fit(cirr(tmp_path, rows), Collating(record=Triplet))


def test_another_number_of_images_is_not_official(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 9 images of CIRR's train, but 16,939 are publ"):
        cirr(tmp_path, official=True).train_dataset()


@pytest.mark.skipif(not REAL.is_dir(), reason="DATA_ROOT holds no benchmarks/cirr")
def test_the_official_list_of_training_images() -> None:
    assert len(CIRRImages(str(REAL), "{path}", "train").pool()) == TRAIN_IMAGES


@pytest.mark.parametrize("rows", [[], [{**CIRR_ROWS[0], "caption": ""}]])
def test_nothing_to_learn_from_is_refused(tmp_path: Path, rows: Any) -> None:
    with pytest.raises(UserError, match="holds no query with a caption"):
        cirr(tmp_path, rows).train_dataset()
