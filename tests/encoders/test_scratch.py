from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from cirlab.encoders.scratch import read_word_vectors, set_word_vectors
from tests.tiny import write_tiny_llm


def test_word_vectors_in_float16_start_an_embedding_at_its_own_spread(tmp_path: Path) -> None:
    words = ["red", "green", *(f"other{i}" for i in range(3000))]
    vectors = np.random.default_rng(0).normal(scale=5.0, size=(len(words), 30)).astype(np.float16)
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    np.save(tmp_path / "vectors.f16.npy", vectors)
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_llm(tmp_path / "llm"))
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(len(tokenizer), 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set_word_vectors(embedding, tokenizer, *read_word_vectors(tmp_path)) == 2
    row = embedding.weight[tokenizer.get_vocab()["red"]].detach()
    expected = torch.from_numpy(vectors[0].astype(np.float32)) / 5.0
    torch.testing.assert_close(row[:30], expected, rtol=0.1, atol=0.05)
    assert not row[30:].any()
