"""What the model reads: templates that fit together, and targets that are one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.errors import UserError
from cirlab.records import PromptedPair
from lightning_modules.promptable import PromptableTemplates
from tests.lightning_modules.promptable.tiny import (
    images,
    method,
)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image": "Represent the given image."}, "image is .* must hold <image> once"),
        ({"prompted": "<image> look"}, "prompted is .* must hold {text} once"),
        ({"text": "<image>{text}"}, "text is .* must hold <image> not at all"),
    ],
)
def test_templates_hold_what_they_need(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        PromptableTemplates(**options)


@pytest.mark.parametrize("looking", ["whole", "prefix", "linear"])
def test_templates_that_begin_differently_serve_general_alone(folder: Path, looking: str) -> None:
    templates = PromptableTemplates(prompted="Look: <image> {text}")
    sentence = r"templates\.prompted is 'Look: .* and templates\.image is .*; write the same before"
    with pytest.raises(UserError, match=sentence):
        method(folder, looking=looking, templates=templates)
    method(folder, looking="general", templates=templates)


@pytest.mark.parametrize("looking", ["whole", "prefix", "linear"])
def test_words_before_the_picture_are_refused_with_the_model(folder: Path, looking: str) -> None:
    templates = PromptableTemplates(prompted="{text}<image>")
    with pytest.raises(UserError, match=r"'{text}<image>' has {text} before <image>"):
        method(folder, looking=looking, templates=templates)


def test_equal_words_for_one_question_are_one_target(folder: Path) -> None:
    first, second = images(2)
    module = method(folder)
    records = [
        PromptedPair(first, "at night", "what time is it?"),
        PromptedPair(second, "at night", "what time is it?"),
        PromptedPair(second, "at night"),
    ]
    batch = module.train_collator()(records)
    ids = batch["ids"].tolist()
    assert ids[0] == ids[1] != ids[2]
    loss = module.losses(batch)["prompted"]
    loss.backward()
    grads = [p.grad for p in module.parameters() if p.requires_grad]
    assert grads and all(grad is not None and grad.abs().sum() > 0 for grad in grads)
