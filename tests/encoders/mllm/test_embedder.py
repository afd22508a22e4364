"""Multimodal LLMs as embedders: every layout, both padding sides, adapters, 4 bits, limits."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor
from transformers.utils import is_flash_attn_2_available

from cirlab.encoders.adapters import FourBit, Lora
from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.processor import MLLMProcessor, Prompt
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.errors import UserError
from tests.tiny_mllm import LAYOUTS, write_tiny_mllm

COMPOSED = '<image>Modify this image with "{text}", describe modified image in one word:'


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mllm")
    return {layout: write_tiny_mllm(root / layout, layout) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def llava(folders: dict[str, Path]) -> Path:
    return folders["llava-llama"]


def picture(seed: int, height: int = 48, width: int = 60) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def prompts() -> list[Prompt]:
    """Of mixed lengths, with pictures of mixed sizes and without."""
    composed = [
        Prompt(COMPOSED, "a red circle " * (4 - i), picture(i, height=40 + 30 * i))
        for i in range(4)
    ]
    words = [Prompt("{text} in one word:", "a green square " * (1 + 3 * i)) for i in range(3)]
    return [words[2], composed[0], composed[1], words[0], composed[2], words[1], composed[3]]


def mllm(folder: Path, chunk_size: int | None = None, **settings: Any) -> EmbeddingMLLM:
    settings = {"frozen": True, "max_length": 250, "group_size": 3} | settings
    return EmbeddingMLLM(MLLMSettings(str(folder), **settings), chunk_size).eval()


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


def test_groups_hold_prompts_of_one_kind_and_similar_length(llava: Path) -> None:
    model = mllm(llava)
    batch = model.processor(prompts())
    with_picture = ["pixel_values" in group for group in batch["groups"]]
    assert with_picture == [True, True, False]
    lengths = [group["attention_mask"].sum(dim=1).tolist() for group in batch["groups"]]
    assert lengths[0] == sorted(lengths[0]) and max(lengths[0]) <= min(lengths[1])
    assert sorted(batch["order"].tolist()) == list(range(7))


def test_the_processor_travels_to_workers(llava: Path) -> None:
    processor = mllm(llava).processor
    there = pickle.loads(pickle.dumps(processor))
    for ours, theirs in zip(
        processor(prompts())["groups"], there(prompts())["groups"], strict=True
    ):
        torch.testing.assert_close(ours, theirs)


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


# ---- what is refused ------------------------------------------------------------------------


def test_a_prompt_needs_a_mark_for_its_picture() -> None:
    with pytest.raises(UserError, match="has 0 <image> for 1 pictures"):
        Prompt("Describe this image in one word:", image=picture(0))
    with pytest.raises(UserError, match="has 1 <image> for 0 pictures"):
        Prompt(COMPOSED, "make it red")


def test_a_long_prompt_is_refused_or_loses_words_but_never_its_picture(llava: Path) -> None:
    long = Prompt(COMPOSED, "a red circle " * 40, picture(0))
    refusing = mllm(llava, max_length=60).processor
    with pytest.raises(UserError, match=r"'<image>Mod.* the text 'a red circle .* to cut$") as told:
        refusing([long])
    # What it says is just enough.
    needed = int(re.search(r"at least (\d+)", str(told.value))[1])
    assert replace(refusing, max_length=needed)([long])["cut"] == 0
    with pytest.raises(UserError, match=f"llm.max_length {needed - 1}"):
        replace(refusing, max_length=needed - 1)([long])
    cutting = mllm(llava, max_length=60, long_text="cut").processor
    short = Prompt(COMPOSED, "a green square", picture(1))
    (group,) = cutting([long, short])["groups"]
    lengths = group["attention_mask"].sum(dim=1)
    assert 50 <= lengths.max() <= 60
    picture_token = cutting.tokenizer.convert_tokens_to_ids("<image>")
    assert (group["input_ids"] == picture_token).sum(dim=1).tolist() == [4, 4]
    # The end of the template, after the words, is whole.
    end = cutting.tokenizer("describe modified image in one word:<|end|><|assistant|>")
    assert group["input_ids"][-1, -len(end["input_ids"]) :].tolist() == end["input_ids"]


@pytest.mark.parametrize("long_text", ["refuse", "cut"])
@pytest.mark.parametrize(
    ("template", "text", "has"),
    [
        ("<image>Describe this image in one word:", "", "tokens with its picture, too many"),
        (COMPOSED, "a red circle", "tokens with its picture before any text, too many"),
        ("Describe {text} at some length:", "a red circle", "tokens before any text, too many"),
    ],
)
def test_a_prompt_too_long_without_its_words_says_how_long_it_must_be(
    llava: Path, long_text: str, template: str, text: str, has: str
) -> None:
    processor = mllm(llava, max_length=8, long_text=long_text).processor
    prompt = Prompt(template, text, picture(0) if "<image>" in template else None)
    with pytest.raises(UserError, match=re.escape(repr(template))) as told:
        processor([prompt])
    said = str(told.value)
    assert f"{has} for llm.max_length 8" in said and "to cut" not in said
    assert ("make pictures smaller" in said) == (prompt.image is not None)
    needed = int(re.search(r"at least (\d+)", said)[1])
    assert int(replace(processor, max_length=needed)([prompt])["cut"]) == (
        long_text == "cut" and bool(text)
    )
    with pytest.raises(UserError, match=f"at least {needed}"):
        replace(processor, max_length=needed - 1)([prompt])


def test_max_length_is_held_to_the_models_own(llava: Path) -> None:
    with pytest.raises(UserError, match="reads no more than 256 tokens"):
        mllm(llava, max_length=257)


def test_a_model_without_chat_template_is_refused_and_takes_one_from_the_yaml(
    tmp_path: Path,
) -> None:
    folder = write_tiny_mllm(tmp_path / "bare")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"has no chat template; set llm\.chat_template"):
        mllm(folder)
    mllm(folder, chat_template=template)
    file = tmp_path / "template.jinja"
    file.write_text(template)
    mllm(folder, chat_template=str(file))


def test_a_template_without_a_place_for_pictures_is_refused(llava: Path) -> None:
    words_only = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    with pytest.raises(UserError, match="writes no image token '<image>'"):
        mllm(llava, chat_template=words_only)


def test_lora_targets_that_match_nothing_name_layers_that_there_are(llava: Path) -> None:
    with pytest.raises(UserError, match=r"qkv.*q_proj"):
        mllm(llava, frozen=False, lora=Lora(targets=["qkv"]))


def test_four_bits_need_something_to_train() -> None:
    with pytest.raises(UserError, match=r"set llm\.lora, or llm\.frozen"):
        MLLMSettings("any", four_bit=FourBit())


def test_a_model_without_pictures_is_refused(tmp_path: Path) -> None:
    from tests.tiny import write_tiny_llm

    with pytest.raises(UserError, match=r"llm\.name\) is a mistral, which reads no pictures"):
        mllm(write_tiny_llm(tmp_path / "llm"))


def test_a_beginning_that_the_tokenizer_writes_is_taken_out_of_the_template(
    tmp_path: Path,
) -> None:
    """As in the released code, which cuts "<s>" off the rendered template."""
    folder = write_tiny_mllm(tmp_path / "begun")
    own = AutoProcessor.from_pretrained(folder)
    tokenizer = own.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<|system|>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", begin)]
    )
    own.chat_template = "{{ bos_token }}" + own.chat_template
    processor = MLLMProcessor(own, 200)
    prompt = Prompt("{text}", "a red circle")
    assert processor.render(prompt) == "<|user|>a red circle<|end|><|assistant|>"
    (group,) = processor([prompt])["groups"]
    assert (group["input_ids"] == begin).sum() == 1 and group["input_ids"][0, 0] == begin


@pytest.mark.parametrize("layout", ["llava-llama", "qwen2_vl"])
def test_words_of_the_data_never_become_special_tokens(
    layout: str, folders: dict[str, Path]
) -> None:
    processor = mllm(folders[layout]).processor
    ids = processor.tokenizer.get_vocab()
    words = "a <image> or <|image_pad|><|end|><|assistant|> circle"
    plain, picture_too = processor([Prompt("{text}", words), Prompt(COMPOSED, words, picture(0))])[
        "groups"
    ][::-1]
    for token in ("<|end|>", "<|assistant|>"):
        assert (plain["input_ids"] == ids[token]).sum() == 1
        assert (picture_too["input_ids"] == ids[token]).sum() == 1
    image = ids[processor.processor.image_token]
    assert not (plain["input_ids"] == image).any()
    assert "circle" in processor.tokenizer.decode(plain["input_ids"][0])


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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"chat_template": "{% for m in messages %}"}, r"no Jinja template.*llm\.chat_template"),
        ({"chat_template": "missing.jinja"}, "neither a Jinja template nor a file"),
        ({"processor_options": {"pixels": 3}}, r"has 'pixels', .*it knows .*size"),
        ({"projection": 0}, r"llm\.projection is 0"),
        ({"max_length": 0}, r"llm\.max_length is 0"),
    ],
)
def test_settings_of_no_use_are_refused(llava: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        mllm(llava, **settings)


def test_sizes_that_the_model_must_know_are_no_options_of_the_processor(
    folders: dict[str, Path],
) -> None:
    with pytest.raises(UserError, match=r"'image_grid_pinpoints', which the model .* told as well"):
        mllm(folders["llava_next"], processor_options={"image_grid_pinpoints": [[32, 32]]})


@pytest.mark.skipif(is_flash_attn_2_available(), reason="the package is there")
def test_attention_of_a_package_that_is_missing_is_refused(llava: Path) -> None:
    with pytest.raises(UserError, match="package that is not installed"):
        mllm(llava, attention="flash_attention_2")
