"""DAR: what is searched, what is drawn, how both count, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from callbacks.retrieval import RetrievalEvaluation
from cirlab.benchmarks import WorldDialogue
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.errors import UserError
from cirlab.imagination import GivenPictures, Request
from cirlab.imagination.fusion import FusionSchedule
from cirlab.records import Image, Query
from datamodules import WorldDialogueData
from lightning_modules import DAR, ChatIR
from tests.callbacks.lookup import quiet_trainer
from tests.tiny import write_tiny_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local-dir:{write_tiny_clip(tmp_path_factory.mktemp('dar') / 'clip')}"


def benchmark() -> WorldDialogue:
    return WorldDialogue(families=2, dialogues=6, rounds=3)


def data(*benchmarks: WorldDialogue, **options: Any) -> WorldDialogueData:
    sizes = {"samples": 4, "batch_size": 4, "eval_batch_size": 7}
    return WorldDialogueData(**(sizes | options), benchmarks=list(benchmarks or [benchmark()]))


def evaluate(module: Any, *benchmarks: WorldDialogue, **options: Any) -> dict[str, Any]:
    callback = RetrievalEvaluation()
    trainer = quiet_trainer(callbacks=[callback])
    trainer.validate(module, datamodule=data(*benchmarks, **options), verbose=False)
    return callback.results["world_dialogue"]


class Oracle:
    """Draws the very picture that is meant; counts what it was asked for."""

    def __init__(self, images: int = 1) -> None:
        asked = benchmark()
        asked.setup()
        self.by_id = {image.id: image for image in asked.gallery if isinstance(image, Image)}
        self.images, self.asked = images, list[Request]()

    def pictures(self, requests: Sequence[Request]) -> list[list[Image]]:
        self.asked += requests
        return [[self.by_id[request.dialogue]] * self.images for request in requests]


def rewriter(histories: Sequence[Sequence[str]]) -> list[str]:
    """Keeps the words of the newest text that the caption does not have."""
    return [" ".join([h[0], *(h[-1].split()[-1:] if len(h) > 1 else ())]) for h in histories]


def test_without_pictures_and_rewriter_it_is_the_encoder(clip: str) -> None:
    plain = evaluate(DAR(clip, "zero_shot"))
    assert plain["metrics"] == evaluate(ChatIR(clip))["metrics"]
    assert plain["baselines"] == plain["wins"] == {}


def test_pictures_of_what_is_meant_find_it(clip: str) -> None:
    module = DAR(clip, "zero_shot", imagination=Oracle(), fusion=FusionSchedule([[0.0, 1.0]]))
    found = evaluate(module)
    assert found["metrics"]["recall_at_10"] == found["metrics"]["cumulative_hits_at_10"] == 1
    # The fusion is the picture alone, so that it is neither better nor worse than it.
    assert found["baselines"]["image_only"] == found["metrics"]
    assert found["wins"]["image_only"]["all"] == {"better": 0, "worse": 0, "equal": 24}
    counts = found["wins"]["text_only"]["breakdown"]["round"]
    assert list(counts) == ["0", "1", "2", "3"]
    assert sum(each["better"] for each in counts.values()) > 12


def test_several_pictures_are_averaged_and_equal_ones_are_one(clip: str) -> None:
    one = evaluate(DAR(clip, "zero_shot", imagination=Oracle()))
    assert evaluate(DAR(clip, "zero_shot", imagination=Oracle(images=3))) == one


def test_what_is_rewritten_is_searched_and_drawn(clip: str) -> None:
    oracle = Oracle()
    module = DAR(clip, "zero_shot", rewriter=rewriter, imagination=oracle)  # type: ignore[arg-type]
    evaluate(module)
    asked = benchmark()
    asked.setup()
    texts = rewriter([query.rounds for query in asked.queries])
    assert {(r.dialogue, r.round, r.prompt) for r in oracle.asked} == {
        (*_place(query), text) for query, text in zip(asked.queries, texts, strict=True)
    }
    told = [each.text for each in module.told(asked.queries)]
    assert told == texts


def test_the_vector_of_a_query_is_the_weighted_sum_of_its_round(clip: str) -> None:
    module = DAR(clip, "zero_shot", imagination=Oracle())
    module.configure_model()
    asked = benchmark()
    asked.setup()
    queries = list(asked.queries[:4])
    inputs = module.query_collator()(queries)
    encoder = load_dual_encoder(clip, None, None, None).eval()
    text = encoder.encode_texts(encoder.processor.tokenize([query.text for query in queries]))
    pictures = Oracle().pictures([Request(*_place(query), "") for query in queries])
    pixels = encoder.processor.images([image.load() for (image,) in pictures])
    drawn = encoder.encode_images(pixels)
    weight = torch.tensor([[0.2], [0.2], [0.5], [0.5]])
    expected = normalize((1 - weight) * text + weight * drawn, dim=-1)
    torch.testing.assert_close(module.encode_queries(inputs), expected)


def test_each_text_is_drawn_once_in_a_run_and_workers_know_it(clip: str) -> None:
    oracle = Oracle()
    module = DAR(clip, "zero_shot", imagination=oracle)
    alone = evaluate(module)
    assert len(oracle.asked) == 2 * 24  # drawn, and then taken by every process
    assert evaluate(DAR(clip, "zero_shot", imagination=Oracle()), num_workers=1) == alone


def test_a_chat_has_no_trainer_and_its_texts_are_told_as_they_come(clip: str) -> None:
    class Anything(Oracle):
        def pictures(self, requests: Sequence[Request]) -> list[list[Image]]:
            self.asked += requests
            return [[next(iter(self.by_id.values()))] for _ in requests]

    oracle = Anything()
    module = DAR(clip, "zero_shot", imagination=oracle)
    module.configure_model()
    query = Query("0", "a red circle, where? in a field", (), rounds=("a red circle", "where? .."))
    assert module.encode_queries(module.query_collator()([query])).shape == (1, 16)
    (request,) = set(oracle.asked)
    assert request.round == 1 and request.dialogue.startswith("chat-")


def test_texts_that_are_cut_are_told_of(clip: str, caplog: pytest.LogCaptureFixture) -> None:
    evaluate(DAR(clip, "zero_shot", max_length=8))
    assert "longer than the text encoder reads" in caplog.text


def test_pictures_that_are_missing_are_named(clip: str, tmp_path: Path) -> None:
    module = DAR(clip, "zero_shot", imagination=GivenPictures(str(tmp_path)))
    with pytest.raises(UserError, match=r"24 of 24 pictures are not in .*_0_0"):
        evaluate(module)


def test_nothing_is_trained_and_nothing_exported(clip: str) -> None:
    module = DAR(clip, "zero_shot")
    with pytest.raises(UserError, match="training-free"):
        quiet_trainer().fit(module, datamodule=data())
    with pytest.raises(UserError, match=f"load {clip} itself"):
        module.check_export(merged=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_training": "frozen"}, "encoder_training is 'frozen'; set it to zero_shot or"),
        ({"fusion": FusionSchedule()}, "but there is no imagination"),
    ],
)
def test_bad_arguments_are_refused(clip: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DAR(clip, **({"encoder_training": "zero_shot"} | options))


def _place(query: Query) -> tuple[str, int]:
    dialogue, _, number = query.id.rpartition("#")
    return dialogue, int(number)
