"""Multimodal LLMs as embedders: every layout, both padding sides, adapters, 4 bits, chunks."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from cirlab.encoders.adapters import FourBit, Lora
from cirlab.encoders.mllm.processor import Prompt
from cirlab.errors import UserError
from tests.encoders.mllm.prompting import COMPOSED, mllm, picture, prompts
from tests.tiny_mllm import LAYOUTS, write_tiny_mllm


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mllm")
    return {layout: write_tiny_mllm(root / layout, layout) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def llava(folders: dict[str, Path]) -> Path:
    return folders["llava-llama"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_are_the_same_under_either_padding_side_and_alone(
    layout: str, folders: dict[str, Path]
) -> None:
    vectors = {}
    for side in ("left", "right"):
        model = mllm(folders[layout], padding_side=side)
        batch = model.processor(prompts())
        assert any((group["attention_mask"] == 0).any() for group in batch["groups"])
        vectors[side] = model(batch)
        alone = torch.cat([model(model.processor([prompt])) for prompt in prompts()])
        torch.testing.assert_close(vectors[side], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vectors["left"], vectors["right"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vectors["left"].norm(dim=1), torch.ones(7))


@pytest.mark.parametrize("layout", ["llava-llama", "llava_next", "qwen2_vl"])
def test_the_vector_depends_on_picture_and_on_words(layout: str, folders: dict[str, Path]) -> None:
    model = mllm(folders[layout])
    asked = [
        Prompt(COMPOSED, "a red circle", picture(0)),
        Prompt(COMPOSED, "a red circle", picture(1)),
        Prompt(COMPOSED, "a green square", picture(0)),
    ]
    first, other_picture, other_words = model(model.processor(asked))
    assert not torch.allclose(first, other_picture, atol=1e-4)
    assert not torch.allclose(first, other_words, atol=1e-4)


def test_pictures_cut_into_tiles_are_read_beside_those_with_fewer(
    folders: dict[str, Path],
) -> None:
    model = mllm(folders["llava_next"])
    image = model.processor.tokenizer.convert_tokens_to_ids("<image>")
    shapes = [(64, 64), (30, 90), (40, 56)]
    asked = [Prompt("<image>", image=picture(i, *shape)) for i, shape in enumerate(shapes)]
    batch = model.processor(asked)
    (group,) = batch["groups"]
    tiles = [int(pixels.flatten(1).any(dim=1).sum()) for pixels in group["pixel_values"]]
    # The whole picture, of 4 tokens, and 2 x 2 or 1 x 2 tiles with a token after each of their
    # lines. Lines that are only padding have none.
    assert sorted(tiles) == [3, 5, 5]
    tokens = (group["input_ids"] == image).sum(dim=1)[batch["order"]]
    assert tokens.tolist() == [4 + 4 * (4 + 1), 4 + 2 * (4 + 1), 4 + 2 * (4 + 1)]
    alone = torch.cat([model(model.processor([prompt])) for prompt in asked])
    torch.testing.assert_close(model(batch), alone, atol=1e-5, rtol=1e-5)


def test_a_projection_head_is_an_option(llava: Path) -> None:
    assert mllm(llava).dim == 32
    model = mllm(llava, projection=8)
    assert model(model.processor(prompts())).shape == (7, 8)
    assert model.projection is not None and model.projection.weight.requires_grad


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lora_adapts_the_language_model_alone(layout: str, folders: dict[str, Path]) -> None:
    model = mllm(folders[layout], frozen=False, lora=Lora(rank=2, alpha=4))
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert all(".language_model." in name and "lora_" in name for name in trainable)


def test_without_lora_the_language_model_trains_and_the_tower_never(llava: Path) -> None:
    model = mllm(llava, frozen=False, tune_connector=True)
    trainable = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"language_model", "multi_modal_projector"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_chunks_and_layer_checkpoints_leave_the_gradient_as_it_is(
    llava: Path, checkpointing: bool
) -> None:
    gradients = []
    for chunk_size in (None, 2):
        torch.manual_seed(0)
        model = mllm(
            llava,
            chunk_size,
            frozen=False,
            lora=Lora(rank=2, alpha=4, dropout=0.5),
            group_size=2,
            gradient_checkpointing=checkpointing and chunk_size is not None,
        ).train()
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
        torch.manual_seed(1)
        vectors = model(model.processor(prompts()))
        (vectors @ vectors.T).exp().sum().backward()
        found = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(grad is not None for grad in found)
        gradients.append(found)
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", ["llava-llama", "llava_next", "qwen2_vl"])
def test_chunks_have_the_gradient_of_the_whole_batch(layout: str, folders: dict[str, Path]) -> None:
    gradients = []
    for chunk_size in (None, 2):
        torch.manual_seed(0)
        lora = Lora(rank=2, alpha=4, dropout=0.0)
        model = mllm(folders[layout], chunk_size, frozen=False, lora=lora, group_size=7).train()
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
        batch = model.processor(prompts())
        assert len(batch["groups"]) == (2 if chunk_size is None else 4)
        vectors = model(batch)
        (vectors @ vectors.T).exp().sum().backward()
        found = [p.grad for p in model.parameters() if p.requires_grad]
        gradients.append(torch.cat([g.flatten() for g in found if g is not None]))
    whole, chunked = gradients
    assert len(whole) == len(chunked) and whole.norm() > 0
    assert (whole - chunked).norm() < 1e-4 * whole.norm()


def test_four_bits_and_lora_train_on_the_cpu(llava: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    model = mllm(
        llava,
        frozen=False,
        lora=Lora(rank=2, alpha=4),
        four_bit=FourBit(compute_dtype="float32"),
    ).train()
    quantised = [name for name, m in model.named_modules() if isinstance(m, Linear4bit)]
    assert quantised and all(".language_model." in name for name in quantised)
    before = copy.deepcopy({n: p.detach() for n, p in model.named_parameters()})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    vectors = model(model.processor(prompts()))
    loss = (vectors[0] * vectors[1]).sum()
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    changed = {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}
    assert changed and all("lora_" in name for name in changed)


def test_texts_that_lose_words_are_counted_and_told(
    llava: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = mllm(llava, max_length=40, long_text="cut")
    long, short = Prompt("{text}", "a red circle " * 40), Prompt("{text}", "a red circle")
    for _ in range(4):
        batch = model.processor([long, short])
        assert int(batch["cut"]) == 1
        model(batch)
    told = [record.getMessage() for record in caplog.records]
    assert [int(text.split()[0]) for text in told] == [1, 2, 4]
    assert "llm.max_length 40" in told[0]


def test_what_trains_is_in_32_bits_whatever_the_base_is(llava: Path) -> None:
    model = mllm(
        llava, frozen=False, tune_connector=True, lora=Lora(rank=2, alpha=4), dtype="bfloat16"
    )
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})
    vectors = model(model.processor(prompts()))
    vectors.sum().backward()
    assert model.speaker.model.multi_modal_projector.linear_1.weight.grad is not None


# ---- what is refused ------------------------------------------------------------------------


def test_max_length_is_held_to_the_models_own(llava: Path) -> None:
    with pytest.raises(UserError, match="reads no more than 256 tokens"):
        mllm(llava, max_length=257)


def test_lora_targets_that_match_nothing_name_layers_that_there_are(llava: Path) -> None:
    with pytest.raises(UserError, match=r"qkv.*q_proj"):
        mllm(llava, frozen=False, lora=Lora(targets=["qkv"]))
