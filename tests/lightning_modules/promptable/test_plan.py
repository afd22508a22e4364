"""What is known before any picture is read, and refused then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cirlab.errors import UserError
from cirlab.prompts import FixedPrompt, OwnPrompt, PromptByFacet
from cirlab.retrieval.views import plan_views
from lightning_modules.promptable import LinearSample
from lightning_modules.promptable.plan import questions_of, whole_galleries
from tests.datamodules.toys import ToyBenchmark
from tests.lightning_modules.promptable.tiny import (
    ARMS,
    evaluate,
    fit,
    method,
    pictures_read,
)

LINEAR = ARMS["linear"]
LONG = "is there a red circle? " * 100


@pytest.mark.parametrize("run", [fit, evaluate])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"looking": "linear", "linear": LinearSample(count=5000)},
            r"linear.count is 5000, but there are \d+ benchmark images .* \"what .*at most \d+",
        ),
        (
            LINEAR | {"prompts": PromptByFacet("gpt")},
            "'gpt' have no question for the facet",
        ),
        (
            LINEAR | {"prompts": FixedPrompt(LONG)},
            r"chosen by model\.init_args\.prompts \(FixedP",
        ),
        (
            {"prompts": FixedPrompt(LONG), "llm": {"long_text": "cut"}},
            r"question \"is there .*chosen by .*FixedPrompt\), .*max_length 256, .*never cut",
        ),
    ],
)
def test_what_an_evaluation_would_refuse_is_refused_before_any_work(
    folder: Path, run: Any, arguments: dict[str, Any], sentence: str
) -> None:
    module = method(folder, **arguments)
    with pictures_read(module) as read, pytest.raises(UserError, match=sentence):
        run(module)
    assert read == []


@pytest.mark.parametrize("run", [fit, evaluate])
def test_a_map_skips_no_image(folder: Path, run: Any) -> None:
    module = method(folder, **LINEAR)
    with pictures_read(module) as read, pytest.raises(UserError, match="on_error is skip: set it"):
        run(module, on_error="skip")
    assert read == []


class Gallery(ToyBenchmark):
    """Four images, of which two are ranked, and one query for each question or none."""

    def __init__(self, name: str, gallery: str, questions: Sequence[str | None]) -> None:
        super().__init__(name, images=4, queries=len(questions))
        self.shared, self.questions = gallery, questions

    @property
    def gallery_id(self) -> str:
        return self.shared

    def setup(self) -> None:
        super().setup()
        self.queries = [
            replace(query, targets=("0",), prompt=question, candidates=("0", "2"))
            for query, question in zip(self.queries, self.questions, strict=True)
        ]


def test_a_store_has_what_is_ranked_of_galleries_with_questions_and_all_of_others() -> None:
    benchmarks = [
        Gallery("first", "shared", ["b?", None]),
        Gallery("second", "shared", ["a?", "b?"]),
        Gallery("third", "own", [None]),
    ]
    for benchmark in benchmarks:
        benchmark.setup()
    views = plan_views(benchmarks, OwnPrompt())
    assert questions_of(views) == ["b?", "a?"]
    wanted = whole_galleries(benchmarks, views)
    assert [image.id for image in wanted.images] == ["0", "1", "2", "3"] * 2
    ranked, none = [1, 0, 1, 0], [0] * 4
    needed = dict(zip(wanted.prompts, wanted.needed.int().tolist(), strict=True))
    assert needed == {None: ranked + [1] * 4, "b?": ranked + none, "a?": ranked + none}
