"""What linear maps are told by, and which query each of them moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.benchmarks import WorldFacet
from cirlab.encoders.mllm.processor import Prompt
from cirlab.errors import UserError
from cirlab.prompts import FixedPrompt
from lightning_modules.promptable import LinearSample, PromptableTemplates
from lightning_modules.promptable.question_maps import QuestionMaps
from tests.lightning_modules.promptable.tiny import (
    evaluate,
    images,
    method,
)


def test_each_question_has_a_map_of_its_own_that_the_seed_decides(folder: Path) -> None:
    module = method(folder, looking="linear", linear=LinearSample(count=8, method="least_squares"))
    results = evaluate(module)
    assert results["protocol"]["candidates"] == "own, 6"
    found = module._maps["world_facet"]
    assert set(found.chosen) == set(found.maps) and len(found.maps) == 10
    assert all(w.shape == (module.llm.dim, module.llm.dim) for w in found.maps.values())
    told = results["protocol"]["views"]
    assert told.startswith("least_squares from 8 benchmark images of seed 0, 10 prompts, ")
    other = method(folder, looking="linear", linear=LinearSample(count=8), prompts=FixedPrompt("?"))
    assert evaluate(other)["protocol"]["views"] != told
    assert evaluate(method(folder, looking="general"))["protocol"]["views"] == "none"
    again = evaluate(method(folder, looking="linear", linear=LinearSample(count=8)))
    assert again == results


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The ids of the images that each map is told from, in the order of the maps."""
    ids: list[tuple[str, ...]] = []
    draw = LinearSample.draw

    def noted(self: LinearSample, images: Any, question: str) -> Any:
        found = draw(self, images, question)
        ids.append(tuple(image.id for image in found))
        return found

    monkeypatch.setattr(LinearSample, "draw", noted)
    return ids


def test_a_map_leads_from_general_to_prompted_vectors_of_ranked_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = drawn(monkeypatch)
    module = method(folder, looking="linear", linear=LinearSample(count=8))
    evaluate(module)
    benchmark = WorldFacet(families=8, queries_per_facet=2, negatives=5)
    benchmark.setup()
    found = module._maps["world_facet"].maps
    ranked: dict[str, set[str]] = {question: set() for question in found}
    for query in benchmark.queries:
        ranked[str(query.prompt)] |= set(query.candidates or ())
    # Maps may be drawn before as well, to refuse what cannot be.
    samples = dict(zip(found, ids[-len(found) :], strict=True))
    templates, gallery = PromptableTemplates(), {image.id: image for image in benchmark.gallery}
    for question, sample in samples.items():
        assert set(sample) <= ranked[question]
        loaded = [gallery[name].load() for name in sample]
        with torch.no_grad():
            read = module.llm.processor
            general = module.llm(read([Prompt(templates.image, image=i) for i in loaded]))
            asked = module.llm(read([Prompt(templates.prompted, question, i) for i in loaded]))
        # Not exact: what lies within rounding of the tiny model's alike vectors is left out.
        moved = (general @ found[question].T.float() - asked).norm(dim=1).mean()
        assert moved < 0.5 * (general - asked).norm(dim=1).mean()
    assert len(set(ids)) > 1


def test_a_map_from_training_images_needs_none_of_the_benchmark(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = drawn(monkeypatch)
    sample = LinearSample(count=6, source="training")
    results = evaluate(method(folder, looking="linear", linear=sample))
    training = {image.id for image in images(8)}
    assert ids and all(set(chosen) <= training for chosen in ids)
    assert results["protocol"]["views"].startswith("least_squares from 6 training images of seed 0")


def test_a_query_is_moved_by_the_map_of_its_own_question() -> None:
    maps = {"a": 2 * torch.eye(2), "b": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}
    asked = QuestionMaps(("a", None, "b"), maps, wordings=2)
    moved = asked.moved(torch.tensor([[1.0, 3.0]] * 4), [1, 2, 3, 4])
    assert moved.tolist() == [[2, 6], [1, 3], [1, 3], [3, 1]]


def test_a_sample_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"linear\.count is 0"):
        LinearSample(count=0)
