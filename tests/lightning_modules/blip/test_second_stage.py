"""BLIP's second stage: text and image read together."""

from __future__ import annotations

import pytest
import torch
import transformers

from cirlab.errors import UserError
from cirlab.records import Caption, Item, Query
from tests.lightning_modules.blip.learning import blip
from tests.tiny_blip import pairs, write_tiny_blip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_blip(tmp_path_factory.mktemp("blip"), decoder=True))


def test_the_second_stage_adds_transformers_logit_to_the_cosine(folder: str) -> None:
    module = blip(folder).eval()
    records = pairs(3)
    queries = [Query(str(i), text, targets=()) for i, text in enumerate(["a red", "blue ?"])]
    places = torch.tensor([[0, 2], [1, 0], [0, 1], [1, 2]])
    first = torch.tensor([0.5, 0.25, 0.0, -0.5])
    images: list[Item] = [record.image for record in records]
    with torch.no_grad():
        found = module.rerank(queries, images, places, first)
    reference = transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()
    encoder = module.encoder
    assert encoder is not None
    expected = []
    for (query, image), cosine in zip(places.tolist(), first.tolist(), strict=True):
        tokens = encoder.processor.tokenize([queries[query].text])
        tokens["input_ids"][:, 0] = encoder.encode_id
        pixels = encoder.processor.images([records[image].image.load()])
        with torch.no_grad():
            score = reference(pixel_values=pixels, **tokens).itm_score
        expected.append(score[0, 1].item() + cosine)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert len(set(found.tolist())) == 4
    # The same pairs where captions are looked for.
    captions: list[Item] = [Caption(query.id, query.text) for query in queries]
    asked = [Query(str(i), "", (), image=record.image) for i, record in enumerate(records)]
    with torch.no_grad():
        other = module.rerank(asked, captions, places.flip(1), first)
    torch.testing.assert_close(other, found)


def test_two_images_are_not_matched(folder: str) -> None:
    module = blip(folder).eval()
    images: list[Item] = [record.image for record in pairs(2)]
    asked = [Query("7", "", (), image=pairs(1)[0].image)]
    with pytest.raises(UserError, match=r"query '7' or another one .* rerank_depth: null"):
        module.rerank(asked, images, torch.tensor([[0, 1]]), torch.zeros(1))
