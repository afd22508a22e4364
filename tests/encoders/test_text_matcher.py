"""The text embedder: what it reads, equal scores of equal texts, and empty ones behind all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.encoders.text_matcher import TextMatcher, TextMatcherSettings
from cirlab.errors import UserError
from tests.tiny import write_tiny_llm

QUERIES = ["a red circle", "make it blue", "a green square now", "black"]
TEXTS = ["red circle", "a blue square", "green", "a black circle , a red square", "image"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("llm"))


def matcher(folder: Path, **settings: Any) -> TextMatcher:
    return TextMatcher(TextMatcherSettings(str(folder), **settings)).eval()


@torch.no_grad()
def test_an_empty_text_fits_every_query_worst(folder: Path) -> None:
    model = matcher(folder)
    queries = model.queries(model.reader(QUERIES))
    texts = model.texts([*TEXTS, "", " "])
    ones = torch.ones(len(queries) + len(texts))
    torch.testing.assert_close(torch.cat([queries, texts]).norm(dim=1), ones)
    scores = queries @ texts.T
    assert (scores[:, -2] == scores[:, -1]).all()
    # Even opposite vectors would lie above it.
    torch.testing.assert_close(scores[:, -1], torch.full((4,), -(0.5**0.5)))
    plain = model.llm(**model.reader(QUERIES)) @ model.texts(TEXTS)[:, :-1].T
    assert scores[:, :-2].argsort().tolist() == plain.argsort().tolist()


@torch.no_grad()
def test_equal_texts_have_equal_vectors_in_any_company(folder: Path) -> None:
    model = matcher(folder)
    alone = torch.cat([matcher(folder).texts([text]) for text in TEXTS])
    assert torch.equal(model.texts(TEXTS), alone)
    assert torch.equal(model.texts([TEXTS[3], "a", TEXTS[3]])[[0, 2]], alone[[3, 3]])
    model.forget()
    assert torch.equal(model.texts(TEXTS[::-1]), alone.flip(0))
    assert model.texts([]).shape == (0, model.dim)


@torch.no_grad()
def test_templates_are_what_is_read(folder: Path) -> None:
    model = matcher(folder, query="make it {text}", answer="now a {text}")
    same = matcher(folder, query="{text}", answer="{text}")
    read = model.queries(model.reader(["red"])), model.texts(["circle"])
    expected = same.queries(same.reader(["make it red"])), same.texts(["now a circle"])
    torch.testing.assert_close(read, expected)
    assert not torch.allclose(model.texts(["circle"]), same.texts(["circle"]), atol=1e-2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"query": "Find it."}, r"matcher\.query is 'Find it\.'; it must hold {text} once"),
        ({"answer": "<image>{text}"}, r"matcher\.answer is .* must hold <image> not at all"),
        ({"max_length": 0}, r"matcher\.max_length is 0; set it to 1 token or more"),
    ],
)
def test_settings_that_are_of_no_use(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TextMatcherSettings("zoo:tiny_llm", **options)


def test_weights_that_are_nowhere_are_named_by_their_key(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"\(matcher\.name\) lie in a local folder but cannot"):
        matcher(tmp_path / "empty")
