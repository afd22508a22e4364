"""How galleries are looked at, by each way, and that it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cirlab.benchmarks import COCOFacet
from cirlab.benchmarks.coco_facet import PLACES
from cirlab.encoders.mllm.processor import Prompt
from cirlab.errors import UserError
from cirlab.prompts import FixedPrompt, PromptByFacet
from cirlab.records import SampleKey
from lightning_modules.promptable import PromptableTemplates
from tests.benchmarks.encoders import write_json
from tests.lightning_modules.promptable.tiny import (
    ARMS,
    data,
    evaluate,
    images,
    method,
)

QUESTION = "what is the weather?"


def test_it_learns(folder: Path) -> None:
    module = method(folder, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    batch = module.train_collator()([data().train_dataset()[SampleKey(0, i)] for i in range(8)])
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = module.losses(batch)["prompted"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]


def test_each_way_of_looking_gives_the_vector_of_its_whole_prompt(folder: Path) -> None:
    pictures = images(5)
    templates = PromptableTemplates()
    needed = torch.ones(2, len(pictures), dtype=torch.bool)
    needed[1, 3] = False
    found = {}
    for looking in ("whole", "prefix"):
        module = method(folder, looking=looking).eval()
        inputs = module.image_collator()(pictures)
        with torch.no_grad():
            found[looking] = module.encode_views(inputs, [None, QUESTION], needed)
            general = [Prompt(templates.image, image=picture.load()) for picture in pictures]
            asked = [Prompt(templates.prompted, QUESTION, p.load()) for p in pictures]
            expected = [module.llm(module.llm.processor(prompts)) for prompts in (general, asked)]
        torch.testing.assert_close(found[looking][0], expected[0], atol=1e-5, rtol=0)
        asked_for = needed[1]
        torch.testing.assert_close(
            found[looking][1][asked_for], expected[1][asked_for], atol=1e-5, rtol=0
        )
        assert (found[looking][1][3] == 0).all()
    assert (expected[0] - expected[1]).norm() > 0.1


def test_the_prefix_gives_the_ranks_of_whole_prompts_and_is_told_from_general(
    folder: Path,
) -> None:
    whole, prefix, general = (
        evaluate(method(folder, looking=looking)) for looking in ("whole", "prefix", "general")
    )
    assert whole == prefix
    assert whole["protocol"] != general["protocol"]


def test_the_questions_are_the_choosers(folder: Path) -> None:
    module = method(folder, prompts=FixedPrompt("what is there?"))
    assert evaluate(module)["protocol"]["views"].startswith("1 prompt,")
    (views,) = module.views.values()
    assert views.prompts == ("what is there?",)


def test_coco_facet_is_looked_at_with_the_questions_of_its_facets(
    folder: Path, tmp_path: Path
) -> None:
    """The published layout: texts, and images by path or by number, the right one first."""
    pictures = images(9)
    for place in ("val2017/{:012d}.jpg", "visual7w/images/v7w_{}.jpg", "{:012d}.jpg"):
        for number, picture in enumerate(pictures, start=1):
            path = tmp_path / place.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.load().save(path)
    for facet in PLACES:
        numbers = [[1, 2, 3], [5, 4, 3], [7, 8, 9]]
        rows = [
            {"qry_text": f"Find me an image that contains any {n}.\n", "tgt_img_path": str(n)}
            for n in numbers
        ]
        write_json(tmp_path / "benchmark" / f"{facet}_retrieval.json", rows)
    found = {}
    for looking in ("general", "whole", "prefix"):
        module = method(folder, looking=looking, prompts=PromptByFacet("gpt"))
        benchmark = COCOFacet(str(tmp_path), official=False)
        found[looking] = evaluate(module, benchmark)
        if looking == "prefix":
            (views,) = module.views.values()
    assert found["prefix"] == found["whole"] != found["general"]
    assert len(found["prefix"]["breakdown"]["facet"]) == len(PLACES) == len(views.prompts)
    # Of each facet's images, those that its queries rank and no others.
    assert views.needed.sum(dim=1).tolist() == [len({n for row in numbers for n in row})] * 8


@pytest.mark.parametrize("arm", ARMS)
def test_a_constant_encoder_is_never_above_chance(
    folder: Path, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = method(folder, **ARMS[arm])
    one = torch.nn.functional.normalize(torch.ones(module.llm.dim), dim=0)
    monkeypatch.setattr(module.llm, "unit", lambda pooled: one.expand(len(pooled), -1))
    metrics = evaluate(module)["metrics"]
    assert metrics["recall_at_1"] == metrics["macro_recall_at_5"] == 0


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_an_encoder_of_nan_never_passes(
    folder: Path, arm: str, keeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = method(folder, **ARMS[arm], store=str(tmp_path) if keeps else None)
    monkeypatch.setattr(
        module.llm, "unit", lambda pooled: torch.full((len(pooled), module.llm.dim), torch.nan)
    )
    with pytest.raises(UserError):
        evaluate(module)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("looking", ["general", "whole", "linear"])
def test_what_needs_no_prefix_pools_as_it_likes(folder: Path, looking: str) -> None:
    module = method(folder, {"pooling": "mean"}, looking=looking).eval()
    pictures, templates = images(3), PromptableTemplates()
    with torch.no_grad():
        found = module.encode_views(
            module.image_collator()(pictures), [QUESTION], torch.ones(1, 3, dtype=torch.bool)
        )[0]
        asked = [Prompt(templates.prompted, QUESTION, picture.load()) for picture in pictures]
        expected = module.llm(module.llm.processor(asked))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"llm\.pooling is mean.*needs llm\.pooling: last"):
        method(folder, {"pooling": "mean"})


def test_layers_without_a_cache_are_read_in_one_forward(folder: Path) -> None:
    module = method(folder, looking="whole")
    layers = ["linear_attention", "full_attention"]
    module.llm.speaker.config.get_text_config().layer_types = layers
    module.on_weights_read()
    module.looking = "prefix"
    with pytest.raises(UserError, match=r"layers of kind linear.*\(looking: whole\)"):
        module.on_weights_read()


def test_an_unknown_way_of_looking_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="looking is 'deep'; choose one of general, whole"):
        method(folder, looking="deep")
