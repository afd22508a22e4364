"""The embedding LLM: pooling, visual tokens, adapters, 4-bit weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cirlab.encoders.adapters import FourBit, Lora
from cirlab.encoders.llm import IMAGE_PLACEHOLDER, EmbeddingLLM, pool
from cirlab.errors import UserError
from tests.tiny import write_tiny_llm

TEXTS = [f"image : {IMAGE_PLACEHOLDER} text : make it blue", f"a {IMAGE_PLACEHOLDER}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("llm"))


def visual(rows: int = 2, width: int = 64) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pool_ignores_padding_on_either_side(pooling: str) -> None:
    real = torch.randn(1, 3, 4)
    padding = torch.full((1, 2, 4), 100.0)
    right = pool(torch.cat([real, padding], 1), torch.tensor([[1, 1, 1, 0, 0]]), pooling)
    left = pool(torch.cat([padding, real], 1), torch.tensor([[0, 0, 1, 1, 1]]), pooling)
    expected = real[:, -1] if pooling == "last" else real.mean(dim=1)
    torch.testing.assert_close(right, expected)
    torch.testing.assert_close(left, expected)


def test_a_row_without_padding_is_pooled_at_its_end() -> None:
    hidden = torch.arange(12.0).reshape(1, 3, 4)
    torch.testing.assert_close(
        pool(hidden, torch.ones(1, 3, dtype=torch.long), "last"), hidden[:, -1]
    )


def test_padding_side_does_not_change_the_embedding(folder: Path) -> None:
    model = EmbeddingLLM(str(folder)).eval()
    embeddings = []
    for side in ("right", "left"):
        model.processor.tokenizer.padding_side = side
        tokens = model.processor(TEXTS)
        assert (tokens["attention_mask"] == 0).any()
        embeddings.append(model(**tokens, visual_tokens=visual()))
    torch.testing.assert_close(embeddings[0], embeddings[1], atol=1e-5, rtol=1e-5)


def test_each_row_reads_its_own_visual_token_and_only_there(folder: Path) -> None:
    model = EmbeddingLLM(str(folder)).eval()
    tokens = model.processor([TEXTS[0], TEXTS[0], "a red circle"])
    tokens_of_images = visual()
    both = model(**tokens, visual_tokens=tokens_of_images)
    assert not torch.allclose(both[0], both[1], atol=1e-3)
    swapped = model(**tokens, visual_tokens=tokens_of_images.flip(0))
    torch.testing.assert_close(swapped[0], both[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(swapped[2], both[2], atol=1e-5, rtol=1e-5)


def test_texts_end_with_the_end_token_and_long_ones_keep_it(folder: Path) -> None:
    processor = EmbeddingLLM(str(folder), max_length=6).processor
    end = processor.tokenizer.eos_token_id
    tokens = processor(["a red", "a red circle make it blue now now now"])
    assert tokens["input_ids"].shape == (2, 8)
    assert tokens["attention_mask"].sum(dim=1).tolist() == [4, 6]
    assert tokens["input_ids"][1, 5] == end
    assert (tokens["input_ids"] == end).sum(dim=1).tolist() == [1, 1]


def test_lora_trains_adapters_only_and_starts_as_the_base(folder: Path) -> None:
    base = EmbeddingLLM(str(folder)).eval()
    adapted = EmbeddingLLM(str(folder), lora=Lora(rank=4, alpha=8, dropout=0.0)).eval()
    tokens = base.processor(TEXTS)
    torch.testing.assert_close(
        adapted(**tokens, visual_tokens=visual()), base(**tokens, visual_tokens=visual())
    )
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)


def test_four_bit_weights_with_lora_learn_on_the_cpu(folder: Path) -> None:
    import bitsandbytes as bnb

    torch.manual_seed(0)
    model = EmbeddingLLM(str(folder), lora=Lora(rank=4, alpha=8, dropout=0.0), four_bit=FourBit())
    assert any(isinstance(m, bnb.nn.Linear4bit) for m in model.modules())
    tokens, image, goal = model.processor(TEXTS), visual(), visual()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = (model(**tokens, visual_tokens=image).float() - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_weights_that_are_nowhere_are_named_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"'nobody/nothing' \(llm\).*set llm to their folder"):
        EmbeddingLLM("nobody/nothing")
    with pytest.raises(UserError, match="the zoo holds no model 'zoo:unheard_of'"):
        EmbeddingLLM("zoo:unheard_of")


def test_lora_targets_that_match_nothing_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"LoRA targets \['nonsense'\] match no layer"):
        EmbeddingLLM(str(folder), lora=Lora(targets=["nonsense"]))
