from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.errors import UserError
from cirlab.records import SampleKey, Triplet
from datamodules.folder import FolderData
from datamodules.joined import JoinedData
from tests.datamodules.toys import NumbersData, fit, write_folder


def test_records_of_all_parts_are_seen_once_an_epoch() -> None:
    parts = [NumbersData(5), NumbersData(0), NumbersData(7)]
    data = JoinedData(parts, batch_size=4, eval_batch_size=4, num_workers=0)
    dataset = data.train_dataset()
    found = [dataset[SampleKey(2, i)].captions[0] for i in range(len(dataset))]
    assert found == [f"2-{i}" for i in range(5)] + [f"2-{i}" for i in range(7)]
    ids = [dataset[SampleKey(2, i)].image.id for i in range(len(dataset))]
    assert ids == [f"0:{i}" for i in range(5)] + [f"2:{i}" for i in range(7)]
    with pytest.raises(IndexError):
        dataset[SampleKey(0, 12)]
    seen = [caption for _, batch, _ in fit(data).seen for caption in batch]
    assert sorted(seen) == sorted(f"0-{i}" for i in [*range(5), *range(7)])


def test_the_parts_follow_the_whole(tmp_path: Path) -> None:
    names = write_folder(tmp_path)
    (tmp_path / names[2]).unlink()
    part = FolderData(str(tmp_path), "pairs", batch_size=1, eval_batch_size=1)
    strict = JoinedData([part], batch_size=4, eval_batch_size=4, num_workers=0)
    with pytest.raises(UserError, match="1 of 12 images are missing"):
        strict.train_dataset()
    lenient = JoinedData([part], batch_size=4, eval_batch_size=4, num_workers=0, on_error="skip")
    assert fit(lenient).skipped == [f"0:{names[2]}"]


def test_parts_of_different_records_are_refused() -> None:
    other = NumbersData(5)
    other.train_record = Triplet
    with pytest.raises(UserError, match="one kind of record, found Pair and Triplet"):
        JoinedData([NumbersData(5), other], 4, 4)
    with pytest.raises(UserError, match="no part at all"):
        JoinedData([], 4, 4)
