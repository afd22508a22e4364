from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cirlab.errors import UserError
from cirlab.records import DecodedImage, FileImage, Pair, Query, SampleKey, Triplet
from datamodules.loading import (
    MAX_TRIES,
    BrokenImage,
    EvalCollator,
    EvalSamples,
    Sample,
    TrainCollator,
    TrainSamples,
    decode,
)
from tests.datamodules.toys import jpeg


class Files:
    """Pairs over image files of which some are broken or missing."""

    def __init__(self, folder: Path, length: int, broken: Sequence[int]) -> None:
        self.paths = [folder / f"{i}.jpg" for i in range(length)]
        for i, path in enumerate(self.paths):
            if i not in broken:
                path.write_bytes(jpeg(i))
            elif i % 2:  # every other broken one is missing
                path.write_bytes(b"not an image")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: SampleKey) -> Pair:
        path = self.paths[key.index]
        return Pair(image=FileImage(id=path.name, path=path), captions=(str(key),))


def test_decode_replaces_every_image_of_a_record(tmp_path: Path) -> None:
    paths = Files(tmp_path, 2, broken=[]).paths
    first, second = (FileImage(id=path.name, path=path) for path in paths)
    triplet = decode(Triplet(reference=first, texts=("a", "b"), target=second))
    assert isinstance(triplet.reference, DecodedImage)
    assert isinstance(triplet.target, DecodedImage)
    assert (triplet.reference.id, triplet.target.id) == ("0.jpg", "1.jpg")
    assert triplet.texts == ("a", "b")
    assert np.asarray(triplet.target.load()).shape == (8, 8, 3)
    assert isinstance(decode(first), DecodedImage)
    assert decode("a text") == "a text"
    words = Query(id="q", text="t", targets=("x",))
    assert decode(words) == words


def test_decode_names_the_broken_image(tmp_path: Path) -> None:
    records = Files(tmp_path, 2, broken=[1])
    with pytest.raises(BrokenImage, match=r"^1\.jpg$"):
        decode(records[SampleKey(0, 1)])


@pytest.mark.parametrize(
    ("asked", "broken", "taken"), [(0, [], 0), (1, [1], 2), (3, [3, 4], 0), (0, [0, 1, 2], 3)]
)
def test_a_broken_record_is_replaced_by_the_next_whole_one(
    tmp_path: Path, asked: int, broken: list[int], taken: int
) -> None:
    samples = TrainSamples(Files(tmp_path, 5, broken=broken), on_error="skip")
    sample = samples[SampleKey(7, asked)]
    assert isinstance(sample, Sample)
    assert sample.key == SampleKey(7, asked)
    assert sample.record.image.id == f"{taken}.jpg"
    assert sample.record.captions == (str(SampleKey(7, taken)),)
    between = [(asked + step) % 5 for step in range((taken - asked) % 5)]
    assert list(sample.skipped) == [f"{i}.jpg" for i in between]


@pytest.mark.parametrize("length", [3, MAX_TRIES + 6])
def test_when_nothing_is_whole_the_search_ends(tmp_path: Path, length: int) -> None:
    samples = TrainSamples(Files(tmp_path, length, broken=range(length)), on_error="skip")
    error = samples[SampleKey(0, 1)]
    assert isinstance(error, UserError)
    tried = min(length, MAX_TRIES)
    assert f"{tried} records in a row have a broken or missing image, from 1.jpg" in str(error)


def test_errors_that_are_no_broken_images_are_never_skipped() -> None:
    class Malformed:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, key: SampleKey) -> Any:
            raise UserError("pairs.jsonl, line 1: the field 'image' is missing")

    error = TrainSamples(Malformed(), on_error="skip")[SampleKey(0, 0)]
    assert "line 1" in str(error)


def test_without_skipping_nothing_is_decoded_in_advance(tmp_path: Path) -> None:
    sample = TrainSamples(Files(tmp_path, 2, broken=[0]), on_error="raise")[SampleKey(0, 0)]
    assert isinstance(sample, Sample)
    assert isinstance(sample.record.image, FileImage)


def noise(records: Sequence[Any]) -> dict[str, Any]:
    return {"noise": (float(torch.rand(1)), random.random(), float(np.random.rand()))}  # noqa: NPY002


def test_randomness_of_a_batch_comes_from_seed_and_first_key() -> None:
    def draw(seed: int, epoch: int, index: int) -> tuple[float, ...]:
        batch = TrainCollator(noise, seed=seed)([Sample(SampleKey(epoch, index), "x", ())])
        assert isinstance(batch, dict)
        return batch["noise"]

    torch.manual_seed(1)
    first = draw(0, 0, 3)
    torch.manual_seed(2)
    random.seed(2)
    assert draw(0, 0, 3) == first
    assert len({first, draw(1, 0, 3), draw(0, 1, 3), draw(0, 0, 4)}) == 4


def test_global_generators_are_put_back() -> None:
    def state() -> tuple[float, float, float]:
        return float(torch.rand(1)), random.random(), float(np.random.rand())  # noqa: NPY002

    def seed() -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002

    seed()
    untouched = state()
    seed()
    TrainCollator(noise, seed=5)([Sample(SampleKey(0, 0), "x", ())])
    query = Query(id="q", text="t", targets=("x",))
    samples = EvalSamples([query], on_error="raise")
    EvalCollator(noise, kind="queries", source="b", seed=5)([samples[0]])
    assert state() == untouched


def test_an_error_of_one_sample_or_of_the_collator_is_the_batch() -> None:
    def fails(records: Sequence[Any]) -> dict[str, Any]:
        raise UserError("broken")

    whole = Sample(SampleKey(0, 0), "x", ())
    error = UserError("missing")
    assert TrainCollator(noise, seed=0)([whole, error]) is error
    assert str(TrainCollator(fails, seed=0)([whole])) == "broken"
    query = EvalSamples([Query(id="q", text="t", targets=("x",))], on_error="raise")[0]
    failed = EvalCollator(fails, kind="queries", source="b", seed=0)([query])
    assert isinstance(failed, UserError)


def test_a_query_whose_reference_is_broken_is_marked(tmp_path: Path) -> None:
    path = Files(tmp_path, 2, broken=[1]).paths[1]
    query = Query(id="q", text="t", targets=("x",), image=FileImage(id="r", path=path))
    words = Query(id="w", text="t", targets=("x",))
    samples = EvalSamples([words, query], on_error="skip")
    assert [samples[i].broken for i in range(2)] == [None, "r"]
    blank = samples[1].item
    assert isinstance(blank, Query)
    assert blank.image is not None
    assert (blank.image.id, blank.image.load().getextrema()) == ("r", ((0, 0),) * 3)
