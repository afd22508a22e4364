from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BertTokenizerFast,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    BlipProcessor,
)

from cirlab.dialogue.answerers import BlipAnswerer, MLLMAnswerer, Remembering, WorldAnswerer
from cirlab.encoders.mllm.scratch import subword_tokenizer
from cirlab.errors import UserError
from cirlab.records import DecodedImage, Image
from cirlab.world.image import SceneImage
from cirlab.world.oracle import answer_to
from cirlab.world.scene import draw_scene, generator
from cirlab.zoo.speech import plain
from tests.dialogue.players import Tells, image_of

QUESTIONS = ("is it red?", "what colour is the large dog on the left?", "where is it?")
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def write_tiny_blip(folder: Path) -> Path:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, "?", *sorted({w for q in QUESTIONS for w in q.rstrip("?").split()})]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    image = BlipImageProcessor(size={"height": 16, "width": 16})
    BlipProcessor(image, tokenizer).save_pretrained(folder)
    text = TEXT | {
        "vocab_size": len(tokenizer),
        "bos_token_id": 2,
        "eos_token_id": 4,
        "sep_token_id": 3,
        "pad_token_id": 0,
        "encoder_hidden_size": 32,
        "initializer_range": 0.8,
    }
    config = BlipConfig(text_config=text, vision_config=VISION | {"initializer_range": 0.8})
    torch.manual_seed(0)
    BlipForQuestionAnswering(config).save_pretrained(folder)
    return folder


def write_tiny_blip2(folder: Path) -> Path:
    tokenizer = subword_tokenizer([*QUESTIONS, "Question: Answer:"], size=300, max_length=64)
    processor = Blip2Processor(
        BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer, num_query_tokens=4
    )
    processor.save_pretrained(folder)
    opt = AutoConfig.for_model(
        "opt",
        vocab_size=len(processor.tokenizer),
        hidden_size=32,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        init_std=0.8,
    )
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=TEXT | {"encoder_hidden_size": 32, "vocab_size": 30},
        text_config=opt.to_dict(),
        num_query_tokens=4,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["blip", "blip-2"])
def blip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BlipAnswerer:
    folder = tmp_path_factory.mktemp(request.param)
    write = write_tiny_blip if request.param == "blip" else write_tiny_blip2
    return BlipAnswerer(str(write(folder)), max_new_tokens=6, batch_size=2)


def noisy(number: int) -> Image:
    pixels = torch.randint(256, (16, 16, 3), generator=torch.Generator().manual_seed(number))
    return DecodedImage(f"{number}", PIL.Image.fromarray(pixels.byte().numpy()))


def test_blips_answer_alike_alone_and_among_longer_questions(blip: BlipAnswerer) -> None:
    images = [noisy(number) for number in range(6)]
    questions = [QUESTIONS[number % 3] for number in range(6)]
    together = blip.answer(images, questions)
    alone = [blip.answer([i], [q])[0] for i, q in zip(images, questions, strict=True)]
    assert together == alone
    assert len(set(together)) > 1
    assert blip.answer([], []) == []


def test_an_answer_does_not_repeat_its_question(blip: BlipAnswerer) -> None:
    calls: list[dict[str, Any]] = []
    generate = blip.model.generate

    def listening(**inputs: Any) -> torch.Tensor:
        tokens: torch.Tensor = generate(**inputs)
        calls.append({"asked": inputs["input_ids"], "tokens": tokens})
        return tokens

    blip.model.generate = listening
    try:
        (said,) = blip.answer([noisy(1)], [QUESTIONS[0]])
    finally:
        blip.model.generate = generate
    (call,) = calls
    assert call["asked"].shape[0] == 1
    asked, tokens = call["asked"], call["tokens"]
    decode = blip.processor.tokenizer.batch_decode
    if blip.kind == "blip-2":
        assert tokens[:, : asked.shape[1]].equal(asked)
        tokens = tokens[:, asked.shape[1] :]
    assert [said] == [" ".join(text.split()) for text in decode(tokens, skip_special_tokens=True)]
    assert said and tokens.shape[1] <= 7


def test_identities_tell_weights_apart(blip: BlipAnswerer) -> None:
    before = blip.identity()
    assert before["kind"] == blip.kind and before["max_new_tokens"] == 6
    weight = next(blip.model.parameters())
    with torch.no_grad():
        weight.add_(1.0)
        assert blip.identity()["weights"] != before["weights"]
        weight.sub_(1.0)


def test_the_zoos_multimodal_llm_answers_what_it_sees() -> None:
    answerer = MLLMAnswerer("zoo:tiny_mllm", batch_size=4)
    scenes = [draw_scene(generator("val", 3, number)) for number in range(6)]
    images = [SceneImage(f"{number}", scene) for number, scene in enumerate(scenes)]
    questions = ["what time is it?", "what is the weather?", "what is the view?"] * 2
    said = answerer.answer(images, questions)
    true = [answer_to(*each) for each in zip(scenes, questions, strict=True)]
    assert [plain(text) for text in said] == [plain(text) for text in true]
    assert answerer.identity()["name"] == "zoo:tiny_mllm"
    with pytest.raises(UserError, match=r"prompt is 'Hello'; it must hold <image> once"):
        MLLMAnswerer("zoo:tiny_mllm", prompt="Hello")


def test_another_model_is_no_blip() -> None:
    with pytest.raises(UserError, match=r"'zoo:tiny_llm' \(--answer-model\) is a \w+; name a BLIP"):
        BlipAnswerer("zoo:tiny_llm")


def test_the_world_answers_about_its_own_pictures_only() -> None:
    scene = draw_scene(generator("val", 3, 0))
    question = "what is the place?"
    assert WorldAnswerer().answer([SceneImage("a", scene)], [question]) == [
        answer_to(scene, question)
    ]
    with pytest.raises(UserError, match=r"about 'images/1\.jpg', which is no picture of the built"):
        WorldAnswerer().answer([image_of(1)], [question])


def test_nothing_is_asked_twice() -> None:
    tells = Tells(lambda image, question: f"{image} {question}")
    remembering = Remembering(tells)
    images = [image_of(number) for number in (1, 2, 1)]
    first = remembering.answer(images, ["a?", "a?", "a?"])
    assert first == ["images/1.jpg a?", "images/2.jpg a?", "images/1.jpg a?"]
    assert len(tells.heard) == 2
    assert remembering.answer(images, ["a?", "b?", "a?"])[1] == "images/2.jpg b?"
    assert len(tells.heard) == 3
    assert remembering.identity() == tells.identity()


def test_a_blip_that_was_not_trained_to_answer_is_refused(tmp_path: Path) -> None:
    """Its decoder would be drawn at random."""
    folder = write_tiny_blip(tmp_path)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("text_decoder.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"blip without \d+ of the weights .*'text_decoder\..* first"
    ):
        BlipAnswerer(str(folder))
