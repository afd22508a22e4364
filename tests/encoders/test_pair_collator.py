"""Pairs to batches: one of the captions of each, and ids by which equal pictures are known."""

from __future__ import annotations

import random

import torch

from cirlab.encoders.dual.collate import ImageReader
from cirlab.encoders.pair_collator import PairCollator
from tests.tiny_blip import pair, tiny_blip


def test_a_batch_holds_one_caption_of_each_and_equal_ids_of_one_picture() -> None:
    processor = tiny_blip().processor
    collate = PairCollator(ImageReader(processor))
    captions = ["a red circle", "is it a square ?"]
    records = [pair(0, "red", *captions), pair(1, "blue"), pair(0, "red", "a red square")]
    random.seed(0)
    batches = [collate(records) for _ in range(20)]
    assert batches[0]["image"]["pixels"].shape == (3, 3, 32, 32)
    ids = batches[0]["ids"].tolist()
    assert ids[0] == ids[2] != ids[1]
    said = {tuple(batch["text"]["input_ids"][0].tolist()) for batch in batches}
    assert len(said) == 2
    whole = processor.tokenize([captions[0], "a blue circle", "a red square"])
    found = next(b for b in batches if torch.equal(b["text"]["input_ids"], whole["input_ids"]))
    assert torch.equal(found["text"]["attention_mask"], whole["attention_mask"])
